"""Tokenizers of model directories: small ones trained here, against the library's own answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from clk_hf import write_directory
from clk_models import write_model
from clkiln.errors import ModelError, UnsupportedModel, UsageError
from clkiln.inference.detokenize import StreamDecoder
from clkiln.inference.hf import HFDirectory
from clkiln.inference.hf_tokenizer import read_tokenizer
from clkiln.inference.tokenizer import Tokenizer as Ours

TEXT = "the cat sat on the mat, and don't you 12345 käse 漢字 say so\n\n\tfor i in range(10):\n" * 3
SPECIAL = ["<s>", "</s>", "<|im_end|>"]
VOCAB = 700


def train(library: Tokenizer, **options: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, show_progress=False, **options
    )
    library.train_from_iterator([TEXT], trainer)
    return library


def with_bytes(library: Tokenizer) -> Tokenizer:
    """With the pieces that spell what there is no piece of, and the one for what can't be spelt."""
    stated = json.loads(library.to_str())
    vocab, first = stated["model"]["vocab"], library.get_vocab_size()
    for id, piece in enumerate(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))], first):
        vocab[piece] = id
    return with_tool(Tokenizer.from_str(json.dumps(stated)))


def with_tool(library: Tokenizer) -> Tokenizer:
    """With a word that its makers added, which is no special token."""
    library.add_tokens([AddedToken("<tool>", normalized=False)])
    return library


def byte_level() -> Tokenizer:
    """As of llama 3 and qwen: a pattern that cuts, bytes, no spaces of its own."""
    library = Tokenizer(models.BPE())
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    return with_tool(train(library, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))


def spaced(newer: bool) -> Tokenizer:
    """As of llama 2: spaces are ▁, one before a text, and bytes for what there is no piece of."""
    library = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if newer:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        library.normalizer = normalizers.Sequence(parts)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return with_bytes(train(library))


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "llama 2": lambda: spaced(False),
    "llama 2, newer": lambda: spaced(True),
}


@cache
def library(kind: str) -> Tokenizer:
    return KINDS[kind]()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose tokenizer tests replace."""
    folder = tmp_path_factory.mktemp("model")
    small = write_model(folder / "m.gguf", dtype="f32", hidden=32, heads=2, layers=1, vocab=VOCAB)
    return write_directory(folder / "m", small)


def read(folder: Path, own: Tokenizer, vocab: int = VOCAB, **stated: Any) -> Ours:
    """The tokenizer of the directory with ``own`` in its place, and more in its configuration."""
    own.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", **stated}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text("{}")
    return read_tokenizer(HFDirectory.open(folder), vocab)


@pytest.fixture(scope="module")
def ours(plain: Path) -> Callable[[str], Ours]:
    return cache(lambda kind: read(plain, library(kind)))


TEXTS = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            [
                "the",
                " cat",
                "  ",
                "\n",
                "<s>",
                "</s>",
                "<|im_end|>",
                "<tool>",
                "漢",
                "é",
                "🙂",
                "12",
            ]
        ),
        max_size=8,
    ).map("".join),
)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@example(text=" leading and trailing ")
def test_agrees_with_the_library(ours: Callable[[str], Ours], kind: str, text: str) -> None:
    own, reference = ours(kind), library(kind)
    ids = own.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False).ids
    assert [own.piece(id) for id in ids] == reference.encode(text, add_special_tokens=False).tokens
    # The library strips more of a text of spaces, and puts what is special through the decoder.
    if not any(mark in text for mark in ("<", "▁")):
        assert own.decode(ids) == reference.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_what_is_encoded_is_decoded(ours: Callable[[str], Ours], kind: str, text: str) -> None:
    own = ours(kind)
    ids = own.encode(text)
    if kind == "byte-level":
        assert own.decode(ids, skip_special=False) == library(kind).normalizer.normalize_str(text)
    stream = StreamDecoder(own)
    assert "".join(map(stream.push, ids)) + stream.flush() == own.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens(ours: Callable[[str], Ours], kind: str) -> None:
    own = ours(kind)
    assert own.encode("<|im_end|>") == [2]
    assert 2 not in own.encode("<|im_end|>", special=False)
    assert own.decode(own.encode("<|im_end|>", special=False)) == "<|im_end|>"
    assert own.piece(own.encode("a<tool>", special=False)[-1]) == "<tool>"
    assert own.hidden(2) and not own.hidden(own.encode("the")[-1])
    assert own.token_bytes(2) == b"<|im_end|>"
    assert own.control_at("so</s>", 2) and not own.control_at("so</s>", 1)
    assert own.encode("a\ud800b") == own.encode("a\ufffdb")
    with pytest.raises(UsageError, match=f"token id {VOCAB} is not in a vocabulary"):
        own.piece(VOCAB)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_goes_on_is_encoded_as_in_the_whole(
    ours: Callable[[str], Ours], kind: str
) -> None:
    own, rng = ours(kind), random.Random(5)
    for _ in range(50):
        first, rest = ("".join(rng.choices("the cat\n12", k=9)) for _ in range(2))
        whole = own.encode(f"{first}</s>{rest}")
        assert whole == own.encode(f"{first}</s>") + own.encode(rest, continuation=True)


def test_ids_that_pad_the_embedding_decode_to_nothing(plain: Path) -> None:
    own = read(plain, library("byte-level"))
    top = max(library("byte-level").get_vocab().values())
    assert len(own) == VOCAB > top + 1
    assert own.decode([*own.encode("the"), VOCAB - 1, *own.encode(" cat")]) == "the cat"
    assert own.decode(range(top + 1, VOCAB), skip_special=False) == ""


# -- what a prompt begins with, and what ends an answer --------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["$A", "<s> $A", "<s> $A </s>", "$A </s>"])
def test_the_post_processor_puts_bos(plain: Path, kind: str, shape: str) -> None:
    library = KINDS[kind]()
    library.post_processor = processors.TemplateProcessing(
        single=shape, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    own = read(plain, library)
    bos = [0] if shape.startswith("<s>") else []
    assert own.prompt("the cat") == bos + own.encode("the cat")
    assert own.prompt("<s>the cat") == own.encode("<s>the cat")
    assert (own.add_bos, own.bos) == (bool(bos), 0 if bos else None)


def test_names_of_special_tokens(plain: Path) -> None:
    own = read(plain, byte_level(), bos_token={"content": "<s>"}, eos_token="</s>")
    assert (own.bos_text, own.eos_text) == ("<s>", "</s>")
    assert not own.add_bos
    own = read(plain, byte_level(), bos_token=None)
    assert (own.bos_text, own.eos_text) == ("", "</s>")
    # Only those that are special end an answer, whatever the configuration calls the end.
    assert own.stop_ids == {1, 2}


def test_ends_of_the_configurations(plain: Path) -> None:
    own = byte_level()
    the = own.token_to_id("the")
    read(plain, own)
    for name, value in (("generation_config.json", [the, 0]), ("config.json", the)):
        path = plain / name
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), "eos_token_id": value}))
        found = read_tokenizer(HFDirectory.open(plain), VOCAB)
        assert found.stop_ids == {1, 2, the} | ({0} if isinstance(value, list) else set())
        path.write_text(json.dumps({**json.loads(before), "eos_token_id": VOCAB}))
        with pytest.raises(ModelError, match=f"eos_token_id {VOCAB} is not in a vocabulary"):
            read_tokenizer(HFDirectory.open(plain), VOCAB)
        path.write_text(before)


# -- what is refused -------------------------------------------------------------------------------


def test_what_clkiln_lacks_is_named(plain: Path) -> None:
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json: unsupported decoder WordPiece"):
        read(plain, words)
    silent = byte_level()
    silent.decoder = None
    with pytest.raises(UnsupportedModel, match="unsupported decoder None"):
        read(plain, silent)
    two = byte_level()
    two.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A", special_tokens=[("<s>", 0)]
    )
    with pytest.raises(UnsupportedModel, match="unsupported post-processor"):
        read(plain, two)


def test_two_tokens_with_one_id(plain: Path) -> None:
    """The library gives an added token an id behind the others, and minds no gap among those."""
    stated = json.loads(byte_level().to_str())
    id = len(stated["model"]["vocab"]) + 1
    stated["model"]["vocab"]["twice"] = id
    with pytest.raises(ModelError, match=rf"tokens '\S+' and '\S+' have the id {id}"):
        read(plain, Tokenizer.from_str(json.dumps(stated)))


def test_more_tokens_than_rows(plain: Path) -> None:
    own = byte_level()
    size = own.get_vocab_size(with_added_tokens=False)
    with pytest.raises(ModelError, match=rf"the embedding {size - 1} rows"):
        read(plain, own, vocab=size - 1)
    # What was only added, and never got a row, is text.
    found = read(plain, own, vocab=size)
    assert found.decode(found.encode("a<tool>")) == "a<tool>"
    assert max(found.encode("a<tool>")) < size


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b"\xff", b'{"model":{"type":"BPE"}}'])
def test_damaged_files_are_named(plain: Path, content: bytes) -> None:
    (plain / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json is damaged") as caught:
        read_tokenizer(HFDirectory.open(plain), VOCAB)
    assert "\n" not in str(caught.value)
    (plain / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"m has no tokenizer\.json; .* save_pretrained"):
        read_tokenizer(HFDirectory.open(plain), VOCAB)


def test_lengths_of_training_cut_no_prompt(plain: Path) -> None:
    own = byte_level()
    own.enable_truncation(4)
    own.enable_padding(length=16)
    found = read(plain, own)
    assert found.decode(found.encode("the cat sat on the mat")) == "the cat sat on the mat"
