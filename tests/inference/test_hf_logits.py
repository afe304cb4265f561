"""Logits of model directories against the float64 decoder over the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import clk_engine
import clk_hf
from clkiln.inference.engine import Engine

#: As for GGUF files: what the kernels have to do.
EXPECTED = 2e-5
VOCAB = 515
#: Architecture, how weights are stored, in how many files; each new shape takes compiling.
CASES = [("llama3", "bf16", 3), ("qwen3", "bf16", 2)]
MORE = [
    ("llama2", "f32", 1), ("llama biases", "f16", 2), ("smollm2", "bf16", 1), ("qwen1.5", "f16", 1),
    ("qwen2", "bf16", 2), ("qwen2.5 yarn", "f16", 1), ("qwen3", "f16", 4),
]  # fmt: skip
ALL = [*CASES, *(pytest.param(*case, marks=pytest.mark.long) for case in MORE)]


def logits_are_those_of(engine: Engine, reference: Any, bound: float = EXPECTED) -> None:
    for length in (1, 70):
        ids = clk_engine.prompt(length, engine.config.vocab)
        engine.runner.reset()
        engine.runner.feed(ids)
        error = clk_engine.relative_error(engine.runner.logits(), reference.logits(ids)[-1])
        assert error <= bound, f"after {length} tokens: relative L2 error {error:.2e}"


@pytest.mark.parametrize(("architecture", "dtype", "shards"), ALL)
def test_logits(tmp_path: Path, architecture: str, dtype: str, shards: int) -> None:
    source = clk_engine.model(f"{architecture}/f32", VOCAB)
    path = clk_hf.write_directory(tmp_path / "m", source, dtype=dtype, shards=shards)
    with clk_engine.engine(path) as engine:
        logits_are_those_of(engine, clk_hf.reference(source, dtype))


def test_a_directory_answers_as_the_file_does(tmp_path: Path) -> None:
    """Through tokenizer, template and end tokens, to the letter."""
    source = clk_engine.model("smollm2/f32", VOCAB)
    path = clk_hf.write_directory(tmp_path / "m", source)
    answers = []
    for model in (source, path):
        with clk_engine.engine(model) as engine:
            answers.append(engine.generate("one more time", temperature=0, max_tokens=12))
    assert answers[0].prompt_token_ids == answers[1].prompt_token_ids
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].text == answers[1].text != ""


def test_rows_of_the_embedding_that_no_token_has(tmp_path: Path) -> None:
    """Padding may be sampled all the same: it says nothing."""
    source = clk_engine.model("smollm2/f32", VOCAB)
    path = clk_hf.write_directory(tmp_path / "m", source, tokens=300)
    with clk_engine.engine(path) as engine:
        assert (len(engine.tokenizer), engine.config.vocab) == (VOCAB, VOCAB)
        answer = engine.generate("one more time", temperature=9.0, seed=1, max_tokens=24)
        padding = [id for id in answer.token_ids if id >= 300]
        said = [id for id in answer.token_ids if id < 300]
        assert padding and answer.text == engine.tokenizer.decode(said)
        assert engine.tokenizer.decode([VOCAB - 1], skip_special=False) == ""
