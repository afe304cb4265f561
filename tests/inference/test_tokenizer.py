"""Tokenizers against references written another way, on odd text."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from clk_models import as_read, byte_level_characters, vocabulary_keys
from clkiln.errors import ModelError, UnsupportedModel, UsageError
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.tokenizer import Tokenizer

BASE = as_read(vocabulary_keys(1500))
IDS = {token: index for index, token in enumerate(BASE["tokenizer.ggml.tokens"])}
RANKS = {tuple(pair.split(" ")): rank for rank, pair in enumerate(BASE["tokenizer.ggml.merges"])}
CHARACTERS = byte_level_characters()

# Letters, marks, numbers of three kinds, spaces of five kinds, punctuation, symbols, an emoji, what
# NFC composes, a letter whose case folds to ASCII; and words that patterns and merges care about.
ALPHABET = "aeinostrdlSTé世界निका\u0301\u00bd\u2167\u0663071_-.!?$+<=>^~|'`\"#(]\u20ac\U0001f389"
ALPHABET += "\u200d\ufeff\u017f \t\n\r\u00a0\u3000\0"
WORDS = [" the", "'s", "'LL", "'re", "don't", "  ", "\r\n", " 1234", "ion", " and", "e\u0301"]
MARKS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
PLAIN = st.lists(st.sampled_from(WORDS) | st.text(ALPHABET, max_size=4), max_size=10).map("".join)
MARKED = st.lists(st.sampled_from([*MARKS, "<|im_", "|>"]) | PLAIN, max_size=6).map("".join)


def make(pre: str = "smollm", **changes: Any) -> Tokenizer:
    keys = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return Tokenizer.from_gguf({**BASE, "tokenizer.ggml.pre": pre, **keys})


TOKENIZERS = {pre: make(pre) for pre in ("smollm", "gpt-2", "qwen2", "llama-bpe", "default")}


# -- byte-level BPE, told in another way -----------------------------------------------------------


def is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] == "L"


def is_number(character: str) -> bool:
    return unicodedata.category(character)[0] == "N"


def run(text: str, start: int, member: Any) -> int:
    """Where the run of characters of one kind that starts at ``start`` ends."""
    while start < len(text) and member(text[start]):
        start += 1
    return start


def modern_words(text: str, digits: int) -> Iterator[str]:
    """The words of qwen2 (``digits`` 1) and llama 3 (3), by scanning instead of by pattern."""
    start = 0
    while start < len(text):
        end = modern_word(text, start, digits)
        yield text[start:end]
        start = end


def modern_word(text: str, start: int, digits: int) -> int:
    first = text[start]
    for ending in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"):
        if text[start : start + len(ending)].casefold() == ending:
            return start + len(ending)
    head = start + (not is_letter(first) and not is_number(first) and first not in "\r\n")
    if (end := run(text, head, is_letter)) > head:
        return end
    if is_number(first):
        return min(run(text, start, is_number), start + digits)
    marks = start + (first == " ")
    end = run(text, marks, lambda c: not (c.isspace() or is_letter(c) or is_number(c)))
    if end > marks:
        return run(text, end, lambda c: c in "\r\n")
    end = run(text, start, str.isspace)
    newline = max(text.rfind("\n", start, end), text.rfind("\r", start, end))
    if newline >= 0:
        return newline + 1
    # The last space of a run belongs to the word behind it.
    return end if end == len(text) or end == start + 1 else end - 1


def library_words(text: str, digits: bool) -> list[str]:
    """The words of GPT-2 and (``digits`` apart) SmolLM, cut by the library's own components."""
    parts = [text]
    if digits:
        apart = pre_tokenizers.Digits(individual_digits=True)
        parts = [part for part, _ in apart.pre_tokenize_str(text)]
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = [word for part in parts for word, _ in cut.pre_tokenize_str(part)]
    return [bytes(map(CHARACTERS.index, word)).decode() for word in words]


def merge(word: str, *, whole: bool = False) -> list[int]:
    """BPE as its definition says: join the pair of the lowest rank until there is none."""
    parts = [CHARACTERS[byte] for byte in word.encode()]
    if whole and "".join(parts) in IDS:
        return [IDS["".join(parts)]]
    while len(parts) > 1:
        pairs = list(pairwise(parts))
        best = min(range(len(pairs)), key=lambda i: RANKS.get(pairs[i], len(RANKS)))
        if pairs[best] not in RANKS:
            break
        parts[best : best + 2] = ["".join(pairs[best])]
    return [IDS[part] for part in parts]


@settings(max_examples=200, deadline=None)
@given(text=PLAIN)
@example("a  1  \n b")
@example("  \r\n\r\n  x   ")
def test_every_pre_tokenizer_against_its_reference(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    words = {
        "smollm": library_words(text, digits=True),
        "gpt-2": library_words(text, digits=False),
        "qwen2": list(modern_words(composed, 1)),
        "llama-bpe": list(modern_words(text, 3)),
    }
    for pre, cut in words.items():
        expected = [id for word in cut for id in merge(word, whole=pre == "llama-bpe")]
        assert TOKENIZERS[pre].encode(text) == expected, pre


def test_default_cuts_punctuation_and_numbers_apart() -> None:
    # Known cuts of the published default: punctuation first, then words, then threes of digits.
    cuts = {"Hi,  you": ["Hi", ",", " ", " you"], "x 12345!": ["x", " ", "123", "45", "!"]}
    for text, words in cuts.items():
        assert TOKENIZERS["default"].encode(text) == [id for word in words for id in merge(word)]
    silent = {key: value for key, value in BASE.items() if key != "tokenizer.ggml.pre"}
    assert Tokenizer.from_gguf(silent).encode("x 12345!") == TOKENIZERS["default"].encode(
        "x 12345!"
    )


# -- round trips and special tokens ----------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(text=MARKED, pre=st.sampled_from(["smollm", "gpt-2", "llama-bpe", "default"]))
def test_decoding_gives_the_text_back(text: str, pre: str) -> None:
    tokenizer = TOKENIZERS[pre]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@settings(max_examples=100, deadline=None)
@given(text=MARKED)
def test_special_tokens_only_where_asked_for(text: str) -> None:
    tokenizer = TOKENIZERS["smollm"]
    specials = {tokenizer.encode(mark)[0] for mark in MARKS}
    found = [id for id in tokenizer.encode(text) if id in specials]
    assert len(found) == sum(text.count(mark) for mark in MARKS)
    plain = tokenizer.encode(text, special=False)
    assert not specials & set(plain)
    assert tokenizer.decode(plain) == text


def test_special_tokens_are_hidden_unless_asked_for() -> None:
    tokenizer = TOKENIZERS["smollm"]
    ids = tokenizer.encode("<|im_start|>the end<|im_end|>")
    assert tokenizer.decode(ids) == "the end"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>the end<|im_end|>"


def test_user_defined_tokens_are_text_and_always_recognised() -> None:
    types = BASE["tokenizer.ggml.token_type"].copy()
    types[0] = 4
    tokenizer = make(token_type=types)
    assert tokenizer.encode("<|endoftext|>", special=False) == [0]
    assert tokenizer.decode([0]) == "<|endoftext|>"


def test_the_longest_of_two_special_tokens_wins() -> None:
    tokens = ("<|a|>", "<|a|><|b|>", "<|b|>", *BASE["tokenizer.ggml.tokens"][3:])
    tokenizer = make(tokens=tokens)
    assert tokenizer.encode("<|a|><|b|><|a|>") == [1, 0]


def test_stop_tokens() -> None:
    tokenizer = make()
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (1, 2, False)
    assert (tokenizer.bos_text, tokenizer.eos_text) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.stop_ids == {0, 2}
    assert make(eot_token_id=77, eom_token_id=78).stop_ids == {0, 2, 77, 78}
    plain = BASE["tokenizer.ggml.token_type"] * 0 + 1
    assert make(token_type=plain).stop_ids == {2}


def test_prompt_puts_bos_once() -> None:
    tokenizer = make(add_bos_token=True)
    assert tokenizer.prompt("the") == [1, *tokenizer.encode("the")]
    assert tokenizer.prompt("<|im_start|>the") == [1, *tokenizer.encode("the")]
    assert tokenizer.prompt("") == [1]
    assert make().prompt("the") == make().encode("the")
    # Silent files: llama 3 wants BOS, the others do not; and none without a BOS token.
    assert make("llama-bpe", add_bos_token=None).add_bos
    assert not make("qwen2", add_bos_token=None).add_bos
    assert not make("llama-bpe", add_bos_token=None, bos_token_id=None).add_bos


def test_lone_surrogates_are_replaced() -> None:
    tokenizer = TOKENIZERS["smollm"]
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_ids_out_of_range_are_refused() -> None:
    for id in (-1, 1500):
        for call in (TOKENIZERS["smollm"].token_bytes, TOKENIZERS["smollm"].hidden):
            with pytest.raises(UsageError, match=f"{id} is not in a vocabulary of 1500"):
                call(id)


# -- SentencePiece ---------------------------------------------------------------------------------

PIECES: dict[str, tuple[float, int]] = {
    "<unk>": (0, 2),
    "<s>": (0, 3),
    "</s>": (0, 3),
    **{f"<0x{byte:02X}>": (0, 6) for byte in range(256)},
    **{
        piece: (-index, 1) for index, piece in enumerate("▁a|b▁|ab|▁▁|ba|aab|▁ab|aa|bab".split("|"))
    },
    **{piece: (-90 - index, 1) for index, piece in enumerate("▁abé")},
    "abab": (-0.5, 5),
    "[x]": (0, 4),
}


def sentence_piece(**changes: Any) -> Tokenizer:
    keys: dict[str, Any] = {
        "model": "llama",
        "tokens": tuple(PIECES),
        "scores": np.array([score for score, _ in PIECES.values()], np.float32),
        "token_type": np.array([kind for _, kind in PIECES.values()], np.int32),
        **changes,
    }
    return Tokenizer.from_gguf({f"tokenizer.ggml.{name}": value for name, value in keys.items()})


def join(text: str) -> list[str]:
    """SentencePiece's BPE as its definition says: join the best pair, the leftmost of equals."""
    parts = [(c, [c]) for c in text]
    while True:
        joined = [left[0] + right[0] for left, right in pairwise(parts)]
        usable = [i for i, piece in enumerate(joined) if PIECES.get(piece, (0, 0))[1] in (1, 5)]
        if not usable:
            return [piece for _, pieces in parts for piece in pieces]
        best = max(usable, key=lambda i: (PIECES[joined[i]][0], -i))
        # An unused piece stays in the parts that it was made of.
        apart = parts[best][1] + parts[best + 1][1]
        whole = apart if PIECES[joined[best]][1] == 5 else [joined[best]]
        parts[best : best + 2] = [(joined[best], whole)]


@settings(max_examples=300, deadline=None)
@given(text=st.text("ab é\U0001f389▁<", min_size=1, max_size=30))
@example("abababab")
def test_sentence_piece_against_its_definition(text: str) -> None:
    ids = {piece: index for index, piece in enumerate(PIECES)}
    expected: list[int] = []
    for piece in join("▁" + text.replace(" ", "▁")):
        spelled = [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
        expected += [ids[piece]] if piece in ids else spelled
    tokenizer = sentence_piece()
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode(expected) == text.replace("▁", " ")


def test_sentence_piece_spaces() -> None:
    tokenizer = sentence_piece()
    ids = tokenizer.encode("ab")
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, continuation=True) == " ab"
    bare = sentence_piece(add_space_prefix=False)
    assert bare.decode(bare.encode(" ab")) == " ab"
    assert bare.encode("ab") != ids


def test_sentence_piece_defaults() -> None:
    tokenizer = sentence_piece()
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.stop_ids == {2}
    assert tokenizer.encode("") == []
    assert tokenizer.prompt("<s>[x]") == [1, tuple(PIECES).index("[x]")]
    # Text never becomes a byte piece or a control token by its spelling.
    assert 1 not in tokenizer.encode("<s>", special=False)
    assert tokenizer.decode(tokenizer.encode("<0x41>")) == "<0x41>"


def test_sentence_piece_without_bytes_has_the_unknown_token() -> None:
    keys = {"tokens": ("<unk>", "▁", "a"), "scores": np.zeros(3), "token_type": np.array([2, 1, 1])}
    assert sentence_piece(**keys).encode("aé") == [1, 2, 0]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"model": "bert"}, "tokenizer 'bert'"), ({"pre": "klingon"}, "pre-tokenizer 'klingon'")],
)
def test_unsupported_kinds_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "no vocabulary"),
        ({"merges": None}, "no merges"),
        ({"merges": ("ab",)}, "merge of one part, 'ab'"),
        ({"merges": ("a \u4e16",)}, "do not fit"),
        ({"token_type": np.ones(3)}, "one number for each token"),
        ({"eos_token_id": 1500}, "eos_token_id is 1500"),
        ({"bos_token_id": "x"}, "bos_token_id is 'x'"),
        ({"model": "llama"}, "no scores"),
        ({"model": "llama", "scores": np.full(1500, np.nan)}, "no scores"),
    ],
)
def test_broken_metadata_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        make(**changes)
    assert not isinstance(caught.value, UnsupportedModel)


def test_importing_the_file_side_imports_nothing_heavy() -> None:
    names = "gguf config tokenizer chat detokenize sampling catalog"
    code = "; ".join(
        [
            "import sys",
            *(f"import clkiln.inference.{name}" for name in names.split()),
            "heavy = {'jinja2', 'tokenizers', 'platformdirs', 'pyopencl', 'optuna', 'click'}",
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)",
        ]
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_real_vocabulary(model_file: Path) -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile.open(model_file).metadata)
    text = "<|im_start|>user\nWhat is the capital of France? 1234 + 5<|im_end|>\n"
    ids = tokenizer.encode(text)
    assert ids[:7] == [1, 4093, 198, 1780, 314, 260, 3575]
    assert tokenizer.decode(ids, skip_special=False) == text
    assert tokenizer.stop_ids == {0, 2}
