"""Conversations on the engine: each token is computed once, and what is believed is so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clk_engine
from clkiln.errors import GenerationError, LaunchError, UsageError
from clkiln.inference.buckets import CHUNK
from clkiln.inference.completion import Completion
from clkiln.inference.engine import Engine
from clkiln.runtime.launch import Launch
from clkiln.runtime.memory import Tensor
from clkiln.runtime.opencl import cl

QUESTIONS = (
    "What is the capital of France?", "And of Italy?", "Which one is older?", "Name a river there.",
    "How long is it?", "Say it in one word.", "Thanks! What is 2 + 3?", "And times 4?", "Why?",
    "Goodbye.",
)  # fmt: skip
Messages = list[dict[str, str]]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with clk_engine.engine() as loaded:
        yield loaded


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def add(messages: Messages, answer: Completion) -> None:
    messages.append({"role": "assistant", "content": answer.text})


def afresh(engine: Engine, prompt: Sequence[int], count: int) -> list[int]:
    """The greedy answer to ``prompt``, computed from nothing."""
    runner = engine.runner
    runner.reset()
    runner.feed(prompt)
    found = [runner.pick(0)]
    while len(found) < count and found[-1] not in engine.tokenizer.stop_ids:
        runner.feed_pick()
        found.append(runner.pick(len(found)))
    return found


def is_sound(engine: Engine) -> None:
    """What the runner says is in the KV cache is there: it goes on as if computed from nothing."""
    runner = engine.runner
    held = list(runner.tokens)
    runner.feed([7])
    found = runner.logits()
    runner.reset()
    runner.feed([*held, 7])
    assert clk_engine.relative_error(found, runner.logits()) < 1e-4


# -- ten turns -------------------------------------------------------------------------------------


def ten_turns(engine: Engine, **options: Any) -> list[Completion]:
    """Ten questions and answers; each token is fed to the model once."""
    messages: Messages = []
    answers: list[Completion] = []
    fed = 0
    for question in QUESTIONS:
        messages.append(user(question))
        held = list(engine.runner.tokens) if answers else []
        answer = engine.chat(messages, **options)
        assert answer.reused == len(held)
        assert answer.prompt_token_ids[: answer.reused] == held
        assert answer.reused + answer.prefilled == len(answer.prompt_token_ids)
        # The last token generated was not fed: nothing followed from it.
        fed += answer.prefilled + len(answer.token_ids) - 1
        assert fed == engine.runner.length
        answers.append(answer)
        add(messages, answer)
    return answers


def test_ten_turns_are_the_answers_of_ten_fresh_runs(model_file: Path) -> None:
    """With the real model, whose answers encode to the tokens that were generated."""
    with clk_engine.engine(model_file) as engine:
        answers = ten_turns(engine, temperature=0, max_tokens=12)
        assert answers[0].text == "The capital of France is Paris."
        messages: Messages = []
        for question, answer in zip(QUESTIONS, answers, strict=True):
            messages.append(user(question))
            prompt = engine.chat_ids(messages)
            assert prompt == answer.prompt_token_ids
            assert afresh(engine, prompt, 12) == answer.token_ids
            add(messages, answer)


@pytest.mark.parametrize("ends", [False, True])
def test_ten_turns_of_a_random_model(tmp_path: Path, ends: bool) -> None:
    """Its answers encode to other tokens; they are kept as they were generated."""
    with clk_engine.engine() as engine:
        answer = engine.generate(QUESTIONS[0], temperature=0, max_tokens=8).token_ids
    keys = {"tokenizer.ggml.eot_token_id": answer[-1]} if ends else {}
    path = clk_engine.variation(tmp_path / "m.gguf", metadata=keys)
    with clk_engine.engine(path) as engine:
        answers = ten_turns(engine, temperature=0, max_tokens=8)
        assert ("stop" in {answer.finish_reason for answer in answers}) == ends
        for answer in answers:
            assert afresh(engine, answer.prompt_token_ids, 8) == answer.token_ids
        assert ends or any(
            answer.prompt_token_ids
            != engine.tokenizer.prompt(engine.tokenizer.decode(answer.prompt_token_ids, False))
            for answer in answers
        )


def test_sampled_turns_repeat(engine: Engine) -> None:
    def turns() -> list[list[int]]:
        messages: Messages = []
        found = []
        for seed, question in enumerate(QUESTIONS[:3]):
            messages.append(user(question))
            engine.runner.reset()
            answer = engine.chat(messages, temperature=1.5, seed=seed, max_tokens=6)
            add(messages, answer)
            found.append(answer.token_ids)
        return found

    assert turns() == turns()


# -- what is used again ----------------------------------------------------------------------------


def test_a_branch_shares_its_beginning(engine: Engine) -> None:
    first = [{"role": "system", "content": "Be brief. " * 5}, user("a")]
    one = engine.chat(first, temperature=0, max_tokens=3)
    other = engine.chat([first[0], user("b")], temperature=0, max_tokens=3)
    pairs = zip(one.prompt_token_ids, other.prompt_token_ids, strict=False)
    common = next(place for place, (a, b) in enumerate(pairs) if a != b)
    assert other.reused == common > 20
    assert other.token_ids == afresh(engine, other.prompt_token_ids, 3)
    # The same again: all but the last token, whose logits are needed.
    again = engine.chat([first[0], user("b")], temperature=0, max_tokens=3)
    assert (again.reused, again.prefilled) == (len(again.prompt_token_ids) - 1, 1)


def test_a_prompt_takes_whole_chunks_again_and_the_same_bits(engine: Engine) -> None:
    """An answer to a prompt depends on nothing that was asked before, to the last bit."""
    text = clk_engine.prompt(2 * CHUNK, 515)

    def ask(ids: list[int]) -> tuple[int, bytes]:
        text = engine.tokenizer.decode(ids, False)
        found = engine.generate(text, raw=True, temperature=0, max_tokens=2)
        lengths.append(len(found.prompt_token_ids))
        return found.reused, engine.runner.logits().tobytes()

    lengths: list[int] = []
    engine.runner.reset()
    nothing, whole = ask(text)
    assert nothing == 0
    again, same = ask(text)
    assert again == (lengths[-1] - 1) // CHUNK * CHUNK > 0
    assert same == whole
    # Computed in other steps, it has other bits, and is not used again.
    engine.runner.reset(100)
    engine.runner.feed(engine.tokenizer.prompt(engine.tokenizer.decode(text, False))[100:])
    assert ask(text) == (0, whole)
    # Changed at the end: what comes before is used.
    assert ask([*text[:-3], 9, 9, 9])[0] >= CHUNK
    engine.runner.reset()
    engine.chat([user("a")], max_tokens=4)
    assert ask(text) == (0, whole)


# -- what is cut short -----------------------------------------------------------------------------


def test_an_answer_that_nobody_takes_to_its_end(engine: Engine) -> None:
    messages = [user(QUESTIONS[0])]
    for taken in (0, 1, 4):
        engine.runner.reset()
        stream = engine.chat_stream(messages, temperature=0, max_tokens=9)
        for _ in range(taken):
            next(stream)
        cut = stream.completion
        after = [*messages, {"role": "assistant", "content": cut.text}, user("Go on.")]
        answer = engine.chat(after, temperature=0, max_tokens=5)
        if taken:
            assert answer.reused >= len(cut.prompt_token_ids)
        assert answer.token_ids == afresh(engine, answer.prompt_token_ids, 5)
        with pytest.raises(UsageError) if taken else pytest.MonkeyPatch.context():
            next(stream)


PLACES = [
    *(("launch", at) for at in (0, 1, 16, 17, 34, 40, 60, 400)),
    *(("take", at) for at in range(4)),
    *(("read", at) for at in (0, 5)),
    *(("write", at) for at in (0, 1, 2, 3, 9)),
]


class Trap:
    """Counts calls once it is armed, and does something at one of them."""

    def __init__(self, at: int, before: bool, action: Callable[[], Any]) -> None:
        self.at, self.before, self.action = at, before, action
        self.armed, self.count = False, 0

    def around(self, real: Callable[[], Any]) -> Any:
        hit = self.armed and self.count == self.at
        self.count += self.armed
        if hit and self.before:
            return self.action()
        result = real()
        return self.action() if hit else result

    def set(self, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        """On launches, or on copies (``take``, ``read``, ``write``), of engines loaded later."""
        if where == "launch":
            prepare = Launch.prepare

            def prepared(launch: Launch, geometry: Any = None) -> Callable[[], Any]:
                call = prepare(launch, geometry)
                return lambda: self.around(call)

            monkeypatch.setattr(Launch, "prepare", prepared)
        else:
            real = getattr(Tensor, where)

            def copied(tensor: Tensor, *args: Any, **named: Any) -> Any:
                return self.around(lambda: real(tensor, *args, **named))

            monkeypatch.setattr(Tensor, where, copied)


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("where", "at"), PLACES)
@pytest.mark.parametrize("before", [False, True])
def test_an_interruption_anywhere(
    monkeypatch: pytest.MonkeyPatch, where: str, at: int, before: bool
) -> None:
    """Ctrl-C in prefill, while the KV cache grows or while decoding: the next answer is right."""
    trap = Trap(at, before, ctrl_c)
    trap.set(monkeypatch, where)
    messages = [user("a " * 70), {"role": "assistant", "content": "b"}, user("c " * 250)]
    with clk_engine.engine() as engine:
        engine.chat(messages[:1], temperature=0, max_tokens=2)
        trap.armed = True
        with pytest.raises(KeyboardInterrupt):
            engine.chat(messages, temperature=0, max_tokens=40)
        trap.armed = False
        planner, memory = engine.runner.planner, engine.runner.context.memory
        used = memory.used
        answer = engine.chat(messages, temperature=0, max_tokens=4)
        assert answer.token_ids == afresh(engine, answer.prompt_token_ids, 4)
        is_sound(engine)
        held = [*planner.tensors.values(), *planner.resident._parts.values()]
        assert used <= memory.used == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize("at", [0, 5, 33, 60])
def test_a_failed_launch_leaves_nothing_to_believe(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    trap = Trap(at, True, lambda: -5)  # out of resources
    trap.set(monkeypatch, "launch")
    with clk_engine.engine() as engine:
        engine.chat([user("a")], temperature=0, max_tokens=3)
        trap.armed = True
        with pytest.raises(LaunchError):
            engine.chat([user("a"), {"role": "assistant", "content": "b"}, user("c")])
        trap.armed = False
        assert engine.runner.tokens == []
        answer = engine.chat([user("a")], temperature=0, max_tokens=3)
        assert (answer.reused, answer.token_ids) == (0, afresh(engine, answer.prompt_token_ids, 3))


@pytest.mark.parametrize("at", [0, 1, 2, 3, 9])
def test_a_copy_that_the_driver_refuses_is_named(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """As on a device that is lost in mid-answer; one that is back answers as ever."""
    copy = cl.enqueue_copy
    with clk_engine.engine() as engine:
        engine.chat([user("a")], temperature=0, max_tokens=3)
        context = engine.runner.context

        def refused() -> None:
            cl.Buffer(context.handle, cl.mem_flags.READ_WRITE, size=0)

        trap = Trap(at, True, refused)
        trap.armed = True
        monkeypatch.setattr(cl, "enqueue_copy", lambda *a, **n: trap.around(lambda: copy(*a, **n)))
        text = rf"cop(y|ying) .* failed on {re.escape(context.info.name)}: .*INVALID_BUFFER_SIZE"
        for ask in (lambda: engine.chat([user("a b")]), lambda: engine.generate("a b")):
            trap.count = 0
            with pytest.raises(LaunchError, match=text):
                ask()
            assert engine.runner.tokens == []
        trap.armed = False
        answer = engine.chat([user("a")], temperature=0, max_tokens=3)
        assert (answer.reused, answer.token_ids) == (0, afresh(engine, answer.prompt_token_ids, 3))
        is_sound(engine)


def test_bad_logits_leave_nothing_to_believe(engine: Engine) -> None:
    engine.chat([user("a")], temperature=0, max_tokens=3)
    cache = engine.runner.planner.tensors["blk.0.k_cache"]
    cache.write(np.full(cache.shape, np.nan, np.float32))
    with pytest.raises(GenerationError):
        engine.chat([user("a")], temperature=0, max_tokens=3)
    answer = engine.chat([user("a")], temperature=0, max_tokens=3)
    assert answer.reused == 0
    assert answer.finish_reason == "length"


def test_a_full_context_ends_a_turn_and_the_chat_goes_on() -> None:
    with clk_engine.engine(ctx_size=60) as engine:
        full = engine.chat([user("a")], temperature=0)
        assert full.finish_reason == "length"
        assert engine.runner.length == 60
        answer = engine.chat([user("b")], temperature=0, max_tokens=2)
        assert answer.token_ids == afresh(engine, answer.prompt_token_ids, 2)
