"""The KV cache: it grows in blocks, says how much fits, and is right far into a long context."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clk_engine
from clk_decoder64 import Decoder64
from clkiln.errors import OutOfDeviceMemory
from clkiln.inference.buckets import CHUNK
from clkiln.inference.engine import Engine
from clkiln.inference.kv_cache import BLOCK

LONG = 16384


@cache
def long_model() -> Path:
    shape = {"dtype": "q8_0", "context": LONG, "layers": 1, "rope_theta": 1e6}
    return clk_engine.variation(clk_engine.small_model().parent / "long.gguf", **shape)


def test_the_context_is_the_models_own_and_memory_follows_its_use() -> None:
    with clk_engine.engine(long_model()) as engine:
        runner = engine.runner
        assert runner.limit == LONG
        assert runner.capacity == BLOCK
        bytes_of, seen = [], []
        for length in (1, BLOCK, BLOCK + 1, 2 * BLOCK + 1, 1500):
            runner.feed([5] * (length - runner.length))
            seen.append(runner.capacity)
            tensor = runner.planner.tensors["blk.0.k_cache"]
            bytes_of.append(tensor.nbytes / (2 * 16 * 4))
            assert tensor.shape[0] == runner.planner.tensors["rope_table"].shape[0]
        assert seen == bytes_of
        assert all(capacity % BLOCK == 0 for capacity in seen)
        assert seen == [BLOCK, BLOCK, 2 * BLOCK, 3 * BLOCK, 6 * BLOCK]


@settings(max_examples=12)
@given(limit=st.integers(1, 900), lengths=st.lists(st.integers(1, 400), max_size=4))
def test_growth_stays_within_the_limit(limit: int, lengths: list[int]) -> None:
    """Whatever the steps: room for all, at most the limit, and less than half of it spare."""
    with clk_engine.engine(ctx_size=limit) as engine:
        runner = engine.runner
        for length in lengths:
            if runner.length + length > limit:
                break
            runner.feed([5] * length)
            assert runner.length <= runner.capacity <= limit
            assert runner.capacity <= max(1.5 * runner.length + BLOCK, BLOCK)


def test_far_into_a_long_context() -> None:
    """Prompt and decoding past the contexts that are tuned, against the float64 decoder."""
    prompt = clk_engine.prompt(4400, 515)
    decoder = Decoder64(long_model())
    for start in range(0, len(prompt), CHUNK):
        expected = decoder.extend(prompt[start : start + CHUNK])
    with clk_engine.engine(long_model()) as engine:
        engine.runner.feed(prompt)
        for step in range(3):
            assert clk_engine.relative_error(engine.runner.logits(), expected) < 2e-5
            token = engine.runner.pick(step)
            expected = decoder.extend([token])
            engine.runner.feed_pick()


# -- what does not fit -----------------------------------------------------------------------------


def fitting(engine: Engine, length: int) -> int:
    """How many positions fit, as the refusal of so many tokens more says."""
    with pytest.raises(OutOfDeviceMemory, match=r"^KV cache .* does not fit") as caught:
        engine.runner.feed([5] * length)
    found = re.search(r"KV cache of (\d+) positions .*: (\d+) do", str(caught.value))
    assert found
    assert int(found[1]) == engine.runner.length + length
    return int(found[2])


@settings(max_examples=15)
@given(free=st.integers(0, 150_000), held=st.integers(0, 300))
def test_it_says_exactly_how_many_positions_fit(free: int, held: int) -> None:
    with clk_engine.engine(clk_engine.small_model(), ctx_size=1000) as engine:
        runner, memory = engine.runner, engine.runner.context.memory
        runner.feed([5] * 300)  # activations for prompts are there
        runner.reset(held)
        capacity = runner.capacity
        memory.limit = memory.used + free
        most = fitting(engine, 1000 - held)
        assert capacity <= most < 1000
        assert (runner.length, runner.capacity) == (held, capacity)  # nothing is done or lost
        runner.reset()
        runner.feed([5] * most)
        runner.reset()
        assert fitting(engine, most + 1) == most


def test_an_answer_that_the_cache_cannot_hold_leaves_a_usable_engine() -> None:
    messages = [{"role": "user", "content": "a " * 100}]
    with clk_engine.engine() as engine:
        memory = engine.runner.context.memory
        first = engine.chat(messages, temperature=0, max_tokens=3)
        assert engine.runner.capacity == BLOCK
        limit, memory.limit = memory.limit, memory.used
        stream = engine.chat_stream(messages, temperature=0)
        with pytest.raises(OutOfDeviceMemory, match=rf"KV cache of {BLOCK + 1} .* {BLOCK} do"):
            list(stream)
        assert len(stream.completion.token_ids) == BLOCK - len(first.prompt_token_ids) + 1
        again = engine.chat(messages, temperature=0, max_tokens=3)
        assert again.token_ids == first.token_ids
        memory.limit = limit
        whole = engine.chat(messages, temperature=0, max_tokens=300)
        assert whole.token_ids[: len(stream.completion.token_ids)] == stream.completion.token_ids


def test_a_driver_that_refuses_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget allows it, the driver does not: after some tensors have grown."""
    with clk_engine.engine() as engine:
        runner = engine.runner
        prompt = clk_engine.prompt(200, 515)
        runner.feed(prompt)
        expected, empty, calls = runner.logits(), runner.context.empty, []

        def refusing(*args: object, **named: object) -> object:
            calls.append(named["what"])
            if len(calls) > 2:
                raise OutOfDeviceMemory("refused by the driver")
            return empty(*args, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(runner.context, "empty", refusing)
        with pytest.raises(OutOfDeviceMemory, match=rf"{BLOCK} do"):
            runner.feed([5] * 100)
        assert len(calls) > 2
        monkeypatch.undo()
        runner.feed([7])
        behind = runner.logits()
        runner.reset()
        runner.feed(prompt)
        assert (runner.logits() == expected).all()
        runner.feed([7])
        assert (runner.logits() == behind).all()
        runner.feed([5] * 100)
        assert np.isfinite(runner.logits()).all()
