"""Answers that are cancelled: they end soon, and no later answer notices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import clk_engine
from clkiln.inference.engine import Engine
from clkiln.inference.runner import CHUNK

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with clk_engine.engine() as loaded:
        yield loaded


@pytest.fixture
def long_prompt(engine: Engine) -> str:
    """More than two chunks."""
    text = "a, b; "
    count = 2 * CHUNK // len(engine.encode(text, raw=True)) + 20
    prompt = text * count
    assert len(engine.encode(prompt)) > 2 * CHUNK
    return prompt


def test_before_it_began(engine: Engine) -> None:
    stream = engine.stream("Hello", **GREEDY)
    stream.cancel()
    assert list(stream) == []
    done = stream.completion
    assert (done.text, done.token_ids, done.prefilled) == ("", [], 0)
    assert done.finish_reason is None


def test_between_two_tokens(engine: Engine) -> None:
    whole = engine.generate("Hello", **GREEDY)
    stream = engine.stream("Hello", **GREEDY)
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if len(pieces) == 3:
            stream.cancel()
    assert len(pieces) == 3
    assert stream.completion.text == "".join(pieces)
    assert whole.text.startswith(stream.completion.text)
    assert stream.completion.finish_reason is None
    assert engine.generate("Hello", **GREEDY).token_ids == whole.token_ids


def test_between_two_chunks_of_a_prompt(
    engine: Engine, long_prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.runner.reset()
    whole = engine.generate(long_prompt, **GREEDY)
    engine.runner.reset()
    stream = engine.stream(long_prompt, **GREEDY)
    body = engine.runner._body

    def cancelling(*arguments: Any, **named: Any) -> None:
        body(*arguments, **named)
        stream.cancel()

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "_body", cancelling)
        assert list(stream) == []
    assert stream.completion.prefilled == engine.runner.length == CHUNK
    again = engine.generate(long_prompt, **GREEDY)
    assert again.reused == CHUNK, "what was computed is of use"
    assert again.token_ids == whole.token_ids


def test_a_chat_goes_on_behind_a_cancelled_answer(engine: Engine) -> None:
    messages = [{"role": "user", "content": "Who are you?"}]
    stream = engine.chat_stream(messages, **GREEDY)
    for _ in stream:
        stream.cancel()
    messages += [
        {"role": "assistant", "content": stream.completion.text},
        {"role": "user", "content": "And then?"},
    ]
    following = engine.chat(messages, **GREEDY)
    assert following.reused >= len(stream.completion.prompt_token_ids)
    with clk_engine.engine() as fresh:
        if fresh.chat_ids(messages) == following.prompt_token_ids:
            assert fresh.chat(messages, **GREEDY).token_ids == following.token_ids
