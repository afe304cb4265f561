"""Qwen2.5-Coder-0.5B-Instruct against the libraries that its makers use.

``CLKILN_TEST_QWEN`` is the path of its GGUF file, ``CLKILN_TEST_QWEN_TOKENIZER`` a folder with its
``tokenizer.json``; tests skip where they need what is not there.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import clk_engine
from clk_given import given
from clk_hf import hf_name, write_directory
from clk_models import write_model
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.model import open_model
from clkiln.inference.tokenizer import Tokenizer

pytestmark = pytest.mark.long

LINES = 1000
TOKENS = 40
#: Between the first and the second logit; below it float32 rounding may decide.
MARGIN = 0.1

CODE = (
    "def fibonacci(n: int) -> int:", "    return n if n < 2 else f(n-1) + f(n-2)", "\tif (x!=y) {",
    "#include <stdio.h>", "std::vector<std::pair<int, float>> v{{1, 2.5f}};", "// isn't it: don't",
    "SELECT * FROM t WHERE a >= 10_000 AND b LIKE '%x%';", "fn main() { println!(\"{:?}\", x); }",
    "const f = async (a, b) => { await g(a ?? b); };", "print(f'{x!r:>{width}}')", "0xDEADBEEF1234",
    "<div class=\"a-b\">&nbsp;</div>", "kernel void k(global const float4 *x)", "a[i] <<= 3; /**/",
)  # fmt: skip
WORDS = (
    "the", "Quick", "brown", "won't", "I'LL", "we've", "naïve", "Straße", "ÉCOLE", "1234567",
    "3.14", "γλώσσα", "Привет", "שלום", "مرحبا", "สวัสดี", "안녕하세요", "こんにちは", "ﬁn",
    "ｆｕｌｌ", "e\u0301te\u0301", "\u1100\u1161", "\u212b",
)  # fmt: skip
EMOJI = ("🙂", "👩‍💻", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "🀄", "𝕏", "✔", "\u200b", "\ufeff")
SPACES = (" ", "  ", "    ", "\t", "\n", "\r\n", "\n\n\n", " \n ", "\u3000", "\xa0", "")
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|repo_name|>", "<tool_call>",
    "</tool_call>", "<|im_start|>user\n", "<|im_end", "<|", "<|box_end|>", "<s>", "</s>",
)  # fmt: skip


def lines() -> Iterator[str]:
    rng = random.Random(20_241)

    def chinese() -> str:
        return "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(rng.randint(1, 9)))

    def punctuation() -> str:
        return "".join(rng.choices("，。！？「」…—!?.,;:'\"()[]{}<>|&*#@~`^$%\\/-_=+", k=3))

    kinds: list[Callable[[], str]] = [chinese, punctuation]
    for words in (CODE, WORDS, EMOJI, SPECIAL):
        kinds.append(lambda words=words: rng.choice(words))  # type: ignore[misc]
    for _ in range(LINES):
        parts = (rng.choice(kinds)() + rng.choice(SPACES) for _ in range(rng.randint(1, 12)))
        yield "".join(parts)


@pytest.fixture(scope="module")
def model() -> Path:
    return given("CLKILN_TEST_QWEN", "Qwen2.5-Coder-0.5B as a GGUF file")


@pytest.fixture(scope="module")
def tokenizer() -> Path:
    return given("CLKILN_TEST_QWEN_TOKENIZER", "a folder with its tokenizer.json")


def _tokenizers(folder: Path) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: library.encode(text).ids


def _transformers(folder: Path) -> Callable[[str], list[int]]:
    library = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    return lambda text: library.encode(text)


@pytest.mark.parametrize("library", [_tokenizers, _transformers])
def test_tokens_of_the_file_are_the_libraries(model: Path, tokenizer: Path, library: Any) -> None:
    ours, theirs = Tokenizer.from_gguf(GGUFFile.open(model).metadata), library(tokenizer)
    compared = 0
    for line in lines():
        ids = ours.prompt(line)
        assert ids == theirs(line), repr(line)
        compared += len(ids)
    assert compared > 10 * LINES


def test_tokens_of_a_directory_are_the_librarys(tokenizer: Path, tmp_path: Path) -> None:
    small = write_model(tmp_path / "m.gguf", dtype="f32", vocab=151_936, hidden=8, layers=1)
    path = write_directory(tmp_path / "m", small)
    shutil.copy(tokenizer / "tokenizer.json", path)
    ours, theirs = open_model(path).tokenizer(), _tokenizers(tokenizer)
    for line in lines():
        assert ours.prompt(line) == theirs(line), repr(line)


# -- greedy answers --------------------------------------------------------------------------------

PROMPTS = (
    "What is the capital of France?",
    "Write a Python function that reverses a linked list.",
    "用三句话介绍一下北京。",
    "Explain what this does: int x = ~(a ^ b) & 0xFF;",
    "Write a haiku about compilers. 🙂",
    "Fix the bug:\n```c\nfor (int i = 0; i <= n; i++) sum += a[i];\n```",
)


def dequantised(path: Path) -> Any:
    """The library's model over the file's own weights, in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reader = gguf.GGUFReader(path)
    keys = {
        name.partition(".")[2]: field.contents()
        for name, field in reader.fields.items()
        if name.startswith("qwen2.")
    }
    weights = {
        hf_name(tensor.name): torch.from_numpy(
            np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        )
        for tensor in reader.tensors
    }
    config = transformers.Qwen2Config(
        vocab_size=weights["model.embed_tokens.weight"].shape[0],
        hidden_size=keys["embedding_length"],
        intermediate_size=keys["feed_forward_length"],
        num_hidden_layers=keys["block_count"],
        num_attention_heads=keys["attention.head_count"],
        num_key_value_heads=keys["attention.head_count_kv"],
        max_position_embeddings=keys["context_length"],
        rms_norm_eps=keys["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": keys["rope.freq_base"]},
        tie_word_embeddings="lm_head.weight" not in weights,
    )
    with torch.device("meta"):
        library = transformers.Qwen2ForCausalLM(config)
    library = library.to_empty(device="cpu")
    missing, unexpected = library.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    library.tie_weights()
    # What follows from the configuration is no weight: made again, as the meta device has none.
    rotary = type(library.model.rotary_emb)(config)
    library.model.rotary_emb = rotary
    return library.eval()


def reference_logits(library: Any, ids: list[int], count: int) -> np.ndarray:
    """Logits ``[count, vocab]`` after each of the last ``count`` beginnings of ``ids``."""
    import torch

    with torch.no_grad():
        found: np.ndarray = library(torch.tensor([ids])).logits[0, -count:].double().numpy()
    return found


@pytest.mark.timeout(3600)
def test_greedy_answers_are_those_of_transformers(model: Path) -> None:
    """Each token is the likeliest after those before it, where rounding can't decide."""
    library = dequantised(model)
    compared = 0
    with clk_engine.engine(model) as engine:
        for prompt in PROMPTS:
            answer = engine.generate(prompt, temperature=0, repeat_penalty=1.0, max_tokens=TOKENS)
            ids = answer.prompt_token_ids + answer.token_ids[:-1]
            logits = reference_logits(library, ids, len(answer.token_ids))
            print(repr(answer.text))
            for step, (token, row) in enumerate(zip(answer.token_ids, logits, strict=True)):
                second, first = np.partition(row, -2)[-2:]
                if token != row.argmax():
                    where = f"{prompt!r}, token {step}: margin {first - second:.3f}"
                    assert first - second <= MARGIN, where
                    print(where)
                    break
                compared += 1
    print(f"{compared} tokens are the same")
    assert compared > len(PROMPTS) * TOKENS // 4
