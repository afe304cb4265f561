"""The engine as its callers see it: answers, how they end, and errors in place of nonsense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clk_engine
from clkiln.errors import (
    ContextLengthError,
    GenerationError,
    UsageError,
)
from clkiln.inference.engine import Engine

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def engine() -> Engine:
    """One engine with the small model, for tests that only ask it things."""
    with clk_engine.engine() as loaded:
        yield loaded


def stop_at(engine: Engine, path: Path, place: int) -> tuple[Path, int]:
    """The small model with the greedy answer's token at ``place`` as its end; and that token."""
    answer = engine.generate(QUESTION, temperature=0, max_tokens=place + 1).token_ids
    metadata = {"tokenizer.ggml.eos_token_id": answer[place]}
    return clk_engine.variation(path, metadata=metadata), answer[place]


# -- answers ---------------------------------------------------------------------------------------


def test_20_greedy_answers_are_the_same_bits(tmp_path: Path) -> None:
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    seen = set()
    for _ in range(5):
        with clk_engine.engine(cache=cache) as engine:
            for _ in range(4):
                answer = engine.generate(QUESTION, temperature=0, max_tokens=40)
                seen.add((tuple(answer.token_ids), engine.runner.logits().tobytes()))
    assert len(seen) == 1


@pytest.mark.long
def test_the_real_model_answers_the_same_in_20_starts(model_file: Path) -> None:
    answers = set()
    for _ in range(20):
        with clk_engine.engine(model_file) as engine:
            answer = engine.generate(QUESTION, temperature=0)
            answers.add((answer.text, answer.finish_reason, engine.runner.logits().tobytes()))
    assert [answer[:2] for answer in answers] == [("The capital of France is Paris.", "stop")]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text(max_size=30), st.integers(0, 2**32), st.floats(0, 3), st.integers(1, 30))
def test_pieces_are_the_text_in_whole_characters(
    engine: Engine, prompt: str, seed: int, temperature: float, count: int
) -> None:
    stream = engine.stream(prompt, temperature=temperature, seed=seed, max_tokens=count)
    pieces = list(stream)
    answer = stream.completion
    assert all(pieces)
    assert "".join(pieces) == answer.text == engine.tokenizer.decode(answer.token_ids)
    for piece in pieces:
        assert piece.encode("utf-8").decode("utf-8") == piece
    assert answer.prompt_token_ids == engine.encode(prompt)
    assert answer.seed == seed
    assert (answer.finish_reason == "stop") == (answer.token_ids[-1] in engine.tokenizer.stop_ids)
    assert len(answer.token_ids) <= count


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 50), st.floats(0.1, 1))
def test_a_seed_repeats_a_sampled_answer(
    engine: Engine, seed: int, top_k: int, top_p: float
) -> None:
    options = {"temperature": 2.0, "top_k": top_k, "top_p": top_p, "max_tokens": 10}
    first = engine.generate(QUESTION, seed=seed, **options)
    engine.generate("something else", **options)
    assert engine.generate(QUESTION, seed=first.seed, **options).token_ids == first.token_ids


def test_without_a_seed_answers_differ_and_can_be_repeated(engine: Engine) -> None:
    answers = [engine.generate(QUESTION, temperature=3, max_tokens=10) for _ in range(3)]
    assert len({tuple(answer.token_ids) for answer in answers}) > 1
    again = engine.generate(QUESTION, temperature=3, max_tokens=10, seed=answers[0].seed)
    assert again.token_ids == answers[0].token_ids


def test_a_sampler_that_keeps_one_token_is_greedy(engine: Engine) -> None:
    greedy = engine.generate(QUESTION, temperature=0, max_tokens=10)
    sampled = engine.generate(QUESTION, temperature=5, top_k=1, max_tokens=10)
    assert sampled.token_ids == greedy.token_ids


@pytest.mark.parametrize("default", [{"temp": 0.0}, {"temp": 9.0, "top_k": 1}, {"top_p": 1e-9}])
def test_the_models_own_sampling_defaults_hold(
    tmp_path: Path, engine: Engine, default: dict[str, float]
) -> None:
    metadata = {f"general.sampling.{name}": value for name, value in default.items()}
    path = clk_engine.variation(tmp_path / "m.gguf", metadata=metadata)
    greedy = engine.generate(QUESTION, temperature=0, max_tokens=10).token_ids
    hot = {"temperature": 9, "top_k": 0, "top_p": 1, "seed": 1, "max_tokens": 10}
    with clk_engine.engine(path) as own:
        assert own.generate(QUESTION, max_tokens=10).token_ids == greedy
        assert own.generate(QUESTION, **hot).token_ids != greedy
    defaults = [engine.generate(QUESTION, seed=seed, max_tokens=10) for seed in range(5)]
    warm = [engine.generate(QUESTION, seed=s, max_tokens=10, temperature=0.7) for s in range(5)]
    assert [answer.token_ids for answer in defaults] == [answer.token_ids for answer in warm]
    assert {tuple(answer.token_ids) for answer in warm} != {tuple(greedy)}


# -- how an answer ends ----------------------------------------------------------------------------


def test_the_end_token_ends_the_answer(tmp_path: Path, engine: Engine) -> None:
    path, end = stop_at(engine, tmp_path / "m.gguf", 5)
    whole = engine.generate(QUESTION, temperature=0, max_tokens=20)
    first = whole.token_ids.index(end)
    with clk_engine.engine(path) as stopping:
        answer = stopping.generate(QUESTION, temperature=0, max_tokens=20)
    assert answer.finish_reason == "stop"
    assert answer.token_ids == whole.token_ids[: first + 1]
    assert answer.text == engine.tokenizer.decode(whole.token_ids[:first])


def test_max_tokens_ends_the_answer(engine: Engine) -> None:
    for count in (1, 2, 9):
        answer = engine.generate(QUESTION, temperature=0, max_tokens=count)
        assert (len(answer.token_ids), answer.finish_reason) == (count, "length")
        assert answer.timing["prefill_tok_s"] > 0
        assert (answer.timing["decode_tok_s"] is None) == (count == 1)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_full_context_ends_the_answer(engine: Engine, temperature: float) -> None:
    ids = engine.encode(QUESTION)
    for room in (0, 1, 3):
        with clk_engine.engine(ctx_size=len(ids) + room) as small:
            answer = small.generate(QUESTION, temperature=temperature, seed=1)
            # The last token needs no place: nothing is computed from it.
            assert (len(answer.token_ids), answer.finish_reason) == (room + 1, "length")


def test_a_prompt_that_does_not_fit_is_refused(engine: Engine) -> None:
    length = len(engine.encode(QUESTION))
    with (
        clk_engine.engine(ctx_size=length - 1) as small,
        pytest.raises(ContextLengthError, match=rf"{length} tokens.* {length - 1}.*--ctx-size"),
    ):
        small.stream(QUESTION)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ctx_size": 0}, "at least 1"),
        ({"ctx_size": 1025}, "at most 1024"),
        ({"kv_dtype": "f8"}, "f8"),
        ({"variant": ["imag"]}, "imag"),
        ({"variant": ["gemm=image", "gemv=buffer"]}, "gemv=buffer and gemm=image"),
        ({"variant": ["embedding=image", "gemv=buffer"]}, "embedding=image"),
    ],
)
def test_wrong_options_are_wrong_usage(options: dict[str, object], problem: str) -> None:
    with pytest.raises(UsageError, match=problem), clk_engine.engine(**options):
        pass


def test_wrong_generation_options_are_wrong_usage(engine: Engine) -> None:
    for options in ({"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}):
        with pytest.raises(UsageError):
            engine.stream(QUESTION, **options)
    with pytest.raises(UsageError, match="empty"):
        engine.generate("", raw=True)


def test_one_answer_at_a_time(engine: Engine) -> None:
    first, second = (engine.stream(text, temperature=0, max_tokens=9) for text in ("a", "b"))
    next(first)
    next(second)
    with pytest.raises(UsageError, match="one at a time"):
        list(first)
    assert (
        second.completion.text + "".join(second)
        == engine.generate("b", temperature=0, max_tokens=9).text
    )


# -- a cache that grows ----------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f16", "f32"])
def test_growing_changes_nothing(kv: str) -> None:
    """The KV cache grows, and attention's bucket with it, in a prompt and while decoding."""

    def answer(engine: Engine) -> list[bytes]:
        engine.runner.reset()
        engine.runner.feed(clk_engine.prompt(500, 515))
        found = []
        for step in range(25):
            found.append(engine.runner.logits().tobytes())
            engine.runner.pick(step)
            engine.runner.feed_pick()
        return found

    with clk_engine.engine(kv_dtype=kv) as growing, clk_engine.engine(kv_dtype=kv) as grown:
        assert growing.runner.capacity < 500
        first = answer(growing)
        assert growing.runner.capacity > 512
        grown.runner.feed(clk_engine.prompt(700, 515))
        assert answer(grown) == first == answer(growing)


def test_growing_in_the_middle_of_a_prompt() -> None:
    ids = clk_engine.prompt(900, 515)
    with clk_engine.engine() as whole, clk_engine.engine() as parts:
        whole.runner.feed(ids)
        for start in range(0, 900, 256):
            parts.runner.feed(ids[start : start + 256])
        assert (whole.runner.logits() == parts.runner.logits()).all()


def test_any_token_may_follow(engine: Engine) -> None:
    """Also one that is not the device's own pick, as in sampling."""
    ids, runner = clk_engine.prompt(20, 515), engine.runner
    for token in (0, 77, 514):
        runner.reset()
        runner.feed([*ids, token])
        whole = runner.logits()
        runner.reset()
        runner.feed(ids)
        assert runner.pick(0) != token
        runner.feed([token])
        assert clk_engine.relative_error(runner.logits(), whole) < 1e-3


def test_going_back_forgets(engine: Engine) -> None:
    ids = clk_engine.prompt(40, 515)
    runner = engine.runner
    runner.reset()
    runner.feed(ids[:30])
    runner.feed(ids[30:])
    expected = runner.logits()
    runner.feed([7] * 5)
    runner.reset(30)
    runner.feed(ids[30:])
    assert (runner.logits() == expected).all()
    with pytest.raises(ValueError, match="41 of 40"):
        runner.reset(41)


def test_tokens_that_are_none_are_refused(engine: Engine) -> None:
    engine.runner.reset()
    for ids in ([], [-1], [515], [3, 600]):
        with pytest.raises(ValueError):
            engine.runner.feed(ids)
    assert engine.runner.length == 0
    with pytest.raises(ContextLengthError):
        engine.runner.feed([1] * 1025)
    assert engine.runner.length == 0


# -- nonsense is never a token ---------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["output_norm.weight", "blk.1.attn_norm.weight"])
def test_logits_that_are_not_finite(
    tmp_path: Path, name: str, value: float, temperature: float
) -> None:
    def spoil(data: np.ndarray) -> None:
        data[3] = value

    path = clk_engine.with_tensor(tmp_path / "m.gguf", name, spoil)
    refuses_to_answer(path, temperature, "finite")


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_all_equal(tmp_path: Path, temperature: float) -> None:
    # Scales of zero: all that a kernel which wrote nothing could leave.
    path = clk_engine.with_tensor(tmp_path / "m.gguf", "output_norm.weight", lambda d: d.fill(0))
    refuses_to_answer(path, temperature, "all")


def refuses_to_answer(path: Path, temperature: float, problem: str) -> None:
    with clk_engine.engine(path) as engine:
        stream = engine.stream(QUESTION, temperature=temperature)
        with pytest.raises(GenerationError, match=problem) as caught:
            list(stream)
        assert "step 0" in str(caught.value)
        assert engine.device.name in str(caught.value)
        assert stream.completion.token_ids == []
        assert stream.completion.text == ""


def test_nonsense_later_on_names_its_step(engine: Engine) -> None:
    stream = engine.stream(QUESTION, temperature=0, max_tokens=9)
    next(stream)
    done = len(stream.completion.token_ids)
    table = engine.runner.planner.tensors["rope_table"]
    kept = table.read()
    table.write(np.full(table.shape, np.nan, np.float32))
    try:
        with pytest.raises(GenerationError, match=f"step {done}"):
            list(stream)
    finally:
        table.write(kept)
    assert len(stream.completion.token_ids) == done
