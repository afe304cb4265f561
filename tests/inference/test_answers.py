"""What can be asked of an answer: stop strings, likelihoods, penalties, a system message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clk_engine
from clkiln.errors import ContextLengthError, ModelError, UsageError
from clkiln.inference.completion import Completion
from clkiln.inference.engine import Engine
from clkiln.inference.sampling import Sampler

QUESTION = "What is the capital of France?"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 20}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with clk_engine.engine() as loaded:
        yield loaded


def logits_along(engine: Engine, answer: Completion) -> list[np.ndarray]:
    """The logits from which each token of ``answer`` was chosen, computed in steps of their own."""
    runner = engine.runner
    runner.reset()
    runner.feed(answer.prompt_token_ids)
    found = [runner.logits()]
    for token in answer.token_ids[:-1]:
        runner.feed([token])
        found.append(runner.logits())
    return found


# -- stop strings ----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.data())
def test_a_stop_string_ends_the_answer(engine: Engine, data: st.DataObject) -> None:
    """Any part of the text, across tokens as it comes: nothing of it is shown."""
    whole = engine.generate(QUESTION, **GREEDY)
    start = data.draw(st.integers(0, len(whole.text) - 1))
    stop = whole.text[start : start + data.draw(st.integers(1, 6))]
    stream = engine.stream(QUESTION, stop=[stop, "never said"], **GREEDY)
    pieces = list(stream)
    answer = stream.completion
    assert "".join(pieces) == answer.text == whole.text[: whole.text.index(stop)]
    assert all(pieces)
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
    assert answer.finish_reason == "stop"
    # No token is generated for nothing: the last one completed the stop string, unless the end of
    # the answer showed what a part of a character became.
    before = engine.tokenizer.decode(answer.token_ids[:-1])
    assert stop not in before or len(answer.token_ids) == len(whole.token_ids)


def test_what_is_held_back_comes_out_at_the_end(engine: Engine) -> None:
    whole = engine.generate(QUESTION, **GREEDY)
    stops = [whole.text[-3:] + "never said", "never said"]
    stream = engine.stream(QUESTION, stop=stops, **GREEDY)
    assert "".join(stream) == whole.text
    assert stream.completion.finish_reason == "length"


@pytest.mark.parametrize("stop", ["", [""], ["a", ""]])
def test_an_empty_stop_string_is_wrong_usage(engine: Engine, stop: Any) -> None:
    with pytest.raises(UsageError, match="stop string"):
        engine.stream(QUESTION, stop=stop)


# -- likelihoods -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 3, "seed": 1}])
@pytest.mark.parametrize("count", [0, 1, 5, 515])
def test_logprobs_are_of_the_models_own_logits(
    engine: Engine, count: int, options: dict[str, Any]
) -> None:
    """Whatever penalties and truncation make of them before a token is chosen."""
    options = {**options, "max_tokens": 4, "repeat_penalty": 1.7, "top_k": 40}
    plain = engine.generate(QUESTION, **options)
    assert plain.logprobs is None
    answer = engine.generate(QUESTION, logprobs=count, **options)
    assert answer.token_ids == plain.token_ids
    assert answer.logprobs is not None
    assert [entry.id for entry in answer.logprobs] == answer.token_ids
    for entry, logits in zip(answer.logprobs, logits_along(engine, answer), strict=True):
        exact = logits.astype(np.float64)
        exact -= np.log(np.exp(exact - exact.max()).sum()) + exact.max()
        assert entry.logprob == pytest.approx(exact[entry.id], abs=1e-9)
        order = np.argsort(-exact, kind="stable")[:count]
        assert [top.id for top in entry.top] == order.tolist()
        assert [top.logprob for top in entry.top] == pytest.approx(exact[order], abs=1e-9)
        for shown in (entry, *entry.top):
            assert shown.text == engine.tokenizer.decode([shown.id], False)


def test_greedy_logprobs_change_no_token(engine: Engine) -> None:
    plain = engine.generate(QUESTION, **GREEDY)
    answer = engine.generate(QUESTION, logprobs=1, **GREEDY)
    assert answer.token_ids == plain.token_ids
    assert answer.logprobs is not None
    assert all(entry.top[0].id == entry.id for entry in answer.logprobs)


def test_more_logprobs_than_there_are_tokens(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"logprobs of 516 .* vocabulary has 515"):
        engine.stream(QUESTION, logprobs=516)


# -- penalties -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "penalties",
    [
        {"repeat_penalty": 1.5},
        {"presence_penalty": 5.0},
        {"frequency_penalty": 2.0, "repeat_penalty": 1.1},
    ],
)
@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.5, "min_p": 0.05, "seed": 3}])
def test_penalties_hold_in_an_answer(
    engine: Engine, penalties: dict[str, float], sampled: dict[str, Any]
) -> None:
    """Each token is what a sampler picks that saw the prompt and the tokens before."""
    options = {"temperature": 0, **sampled}
    answer = engine.generate(QUESTION, max_tokens=20, **options, **penalties)
    sampler = Sampler(**options, **penalties)
    sampler.begin(answer.prompt_token_ids)
    for token, logits in zip(answer.token_ids, logits_along(engine, answer), strict=True):
        assert sampler.pick(logits) == token
        sampler.saw(token)
    unpenalised = engine.generate(QUESTION, max_tokens=20, **options)
    assert answer.token_ids != unpenalised.token_ids


@pytest.mark.parametrize(
    ("metadata", "asked"),
    [
        ({"penalty_repeat": 1.5}, {"repeat_penalty": 1.5}),
        ({"penalty_repeat": 1.5, "penalty_last_n": 0}, {}),
        ({"min_p": 0.9, "temp": 2.0}, {"min_p": 0.9, "temperature": 2.0}),
        ({"min_p": 7.0, "penalty_repeat": -1.0, "temp": 2.0}, {"temperature": 2.0}),
    ],
)
def test_the_models_own_penalties_hold(
    tmp_path: Path, engine: Engine, metadata: dict[str, float], asked: dict[str, float]
) -> None:
    keys = {f"general.sampling.{name}": value for name, value in metadata.items()}
    path = clk_engine.variation(tmp_path / "m.gguf", metadata=keys)
    with clk_engine.engine(path) as own:
        answer = own.generate(QUESTION, seed=5, max_tokens=12)
    assert answer.token_ids == engine.generate(QUESTION, seed=5, max_tokens=12, **asked).token_ids


# -- prompts ---------------------------------------------------------------------------------------


def test_a_system_message_comes_first(engine: Engine) -> None:
    answer = engine.generate(QUESTION, system="Be brief.", max_tokens=1)
    text = engine.tokenizer.decode(answer.prompt_token_ids, False)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat")
    with pytest.raises(UsageError, match="raw prompt"):
        engine.generate(QUESTION, system="Be brief.", raw=True)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "no messages"),
        ("Hello", "messages are a list"),
        ({"role": "user", "content": "Hello"}, "messages are a list"),
        (["Hello"], "message 1 is no mapping"),
        ([{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}], "message 2.*'bot'"),
        ([{"content": "a"}], "message 1: role None"),
        ([{"role": "user"}], "message 1: .* not text|no text"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "message 1: .*list"),
    ],
)
def test_messages_that_are_none(engine: Engine, messages: Any, problem: str) -> None:
    for ask in (engine.chat, engine.chat_stream, engine.chat_ids):
        with pytest.raises(UsageError, match=problem):
            ask(messages)


def test_a_conversation_that_is_too_long_names_both_lengths() -> None:
    messages = [{"role": "user", "content": "a " * 400}]
    with clk_engine.engine(ctx_size=100) as small:
        length = len(small.chat_ids(messages))
        with pytest.raises(ContextLengthError, match=rf"{length} tokens.* 100.*--ctx-size"):
            small.chat(messages)


def test_without_a_template_there_is_no_chat(tmp_path: Path) -> None:
    path = clk_engine.variation(tmp_path / "m.gguf", template=None)
    with clk_engine.engine(path) as engine:
        with pytest.raises(ModelError, match="no chat template"):
            engine.chat([{"role": "user", "content": QUESTION}])
        assert engine.generate(QUESTION, raw=True, max_tokens=2).token_ids


def test_an_answer_that_is_closed_stays_as_it_is(engine: Engine) -> None:
    stream = engine.stream(QUESTION, **GREEDY)
    text = next(stream) + next(stream)
    stream.close()
    assert list(stream) == []
    assert stream.completion.text == text
    assert stream.completion.finish_reason is None
    assert stream.completion.timing["first_token_s"]
