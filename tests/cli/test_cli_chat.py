"""``clkiln chat`` from a pipe: a message a line, answers in order, commands, a full context."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clk_cli
import clk_engine
from clk_cli import Result
from clkiln.inference.engine import Engine

Call = Callable[..., Result]

GREEDY = ("--temp", "0", "-n", "8")
FIELDS = {
    "prompt", "text", "token_ids", "finish_reason", "seed", "prompt_tokens", "prefilled", "reused",
    "timing",
}  # fmt: skip


@pytest.fixture
def chat(call: Call, model: Path, device: str) -> Call:
    """``chat(...)`` is ``clkiln chat MODEL ...``, greedy, on the tests' device."""

    def talk(*arguments: object, stdin: str, options: tuple[object, ...] = GREEDY) -> Result:
        return call("chat", model, *options, *arguments, "--device", device, stdin=stdin)

    return talk


def turns(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.out.splitlines()]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_each_line_is_answered_with_what_was_said_before(chat: Call) -> None:
    result = chat(stdin="Who are you?\n\n  \nAnd then?\nOh!\n")
    with clk_engine.engine() as engine:
        messages, answers = [], []
        for question in ("Who are you?", "And then?", "Oh!"):
            messages.append(user(question))
            answers.append(engine.chat(messages, temperature=0, max_tokens=8).text)
            messages.append(assistant(answers[-1]))
    assert (result.code, result.out) == (0, "".join(f"{answer}\n" for answer in answers))
    assert len(set(answers)) > 1
    assert ">>>" not in result.err, "prompts are for terminals"


def test_a_json_line_for_each_turn(chat: Call) -> None:
    result = chat("--json", stdin="Who are you?\nAnd then?\n")
    first, second = turns(result)
    assert set(first) == FIELDS
    assert first["prompt"] == "Who are you?"
    assert first["finish_reason"] in ("stop", "length")
    assert first["reused"] == 0 and first["prefilled"] == first["prompt_tokens"]
    assert second["reused"] > 0
    assert second["reused"] + second["prefilled"] == second["prompt_tokens"]
    # Each token once: what the second turn computes is the second turn's.
    known = first["prompt_tokens"] + len(first["token_ids"])
    assert second["prompt_tokens"] - known <= second["prefilled"] < second["prompt_tokens"] / 2 + 20
    plain = chat(stdin="Who are you?\nAnd then?\n")
    assert plain.out == f"{first['text']}\n{second['text']}\n"


def test_messages_that_go_on(chat: Call) -> None:
    found = turns(chat("--json", stdin='one\\\ntwo\n"""three\n/quit\n"""\n//path\n /path\n'))
    assert [turn["prompt"] for turn in found] == ["one\ntwo", "three\n/quit", "/path", " /path"]


def test_commands(chat: Call, tmp_path: Path) -> None:
    path = tmp_path / "a talk.json"
    result = chat(
        "--json",
        stdin=f"Who?\n/save {path}\n/reset\nWho?\n/system Be brief.\nWho?\n/save {path}\n"
        "/system\n/help\n/quit\nnever said\n",
    )
    assert result.code == 0
    first, again, third = turns(result)
    assert first["token_ids"] == again["token_ids"] and again["reused"] < first["prompt_tokens"]
    assert third["prompt_tokens"] > 2 * first["prompt_tokens"]
    assert json.loads(path.read_text()) == [
        {"role": "system", "content": "Be brief."},
        user("Who?"), assistant(again["text"]), user("Who?"), assistant(third["text"]),
    ]  # fmt: skip
    notes = result.err
    for note in (
        f"(saved 2 messages to {path})", "(new conversation)", "(system message set)",
        f"(saved 5 messages to {path}, in place of what was there)", "system message: Be brief.",
        "/save [--force] FILE",
    ):  # fmt: skip
        assert note in notes


def test_a_saved_conversation_goes_on(chat: Call, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    chat(stdin=f"Who?\n/save {path}\n")
    messages = [*json.loads(path.read_text()), user("And then?")]
    [following] = turns(chat("--json", "--load", path, stdin="And then?\n"))
    with clk_engine.engine() as engine:
        assert following["text"] == engine.chat(messages, temperature=0, max_tokens=8).text
    [other] = turns(chat("--json", "--load", path, "--system", "Hm.", stdin="And then?\n"))
    assert other["prompt_tokens"] > following["prompt_tokens"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/cook", "unknown command /cook (/help lists them"),
        ("/rest", "unknown command /rest, did you mean /reset?"),
        ("/save", "which file? /save FILE"),
        ("/save --force", "which file? /save FILE"),
        ("/save FILE", "exists: /save --force FILE replaces it"),
        ("/etc/passwd is a file", "unknown command /etc/passwd"),
    ],
)
def test_a_script_ends_with_its_first_error(
    chat: Call, tmp_path: Path, line: str, problem: str
) -> None:
    path = tmp_path / "diary.txt"
    path.write_text("Dear diary")
    line, problem = (text.replace("FILE", str(path)) for text in (line, problem))
    problem = problem.replace(f"/save {path}", "/save FILE") if "which" in problem else problem
    result = chat(stdin=f"{line}\nHello\n")
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1].startswith("error: ")
    assert problem in result.err
    assert path.read_text() == "Dear diary"


def test_a_full_context(chat: Call) -> None:
    result = chat(stdin="Who are you?\nWho?\n", options=("--temp", "0", "-c", "60", "-n", "99"))
    assert result.code == 1
    assert result.out
    notes = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert notes == [
        "(the context of 60 tokens is full: /reset begins a new conversation, a start with -c 1024 "
        "gives more room)",
        "error: no room in the context of 60 tokens: /reset begins a new conversation, a start "
        "with -c 1024 gives more room",
    ]
    result = chat("-c", "60", stdin="Who are you? " * 9)
    assert (result.code, result.out) == (1, "")
    assert "error: the message does not fit into the context of 60 tokens" in result.err


def test_an_answer_cut_off_says_so(chat: Call) -> None:
    result = chat(stdin="Who?", options=("--temp", "0", "-n", "2"))
    assert "(cut off after 2 tokens: start with a larger -n" in result.err


def test_verbose_counts_what_was_reused(chat: Call) -> None:
    result = chat("--verbose", stdin="Who are you?\nAnd then?\n")
    first, second = result.lines("prefill:")
    assert "reused" not in first
    assert "reused" in second
    for start in ("device:", "kernels:", "start:", "decode:", "programs:"):
        assert result.lines(start), start


def test_sampling_options_reach_the_engine(
    call: Call, model: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    for name in ("stream", "chat_stream"):
        original = getattr(Engine, name)

        def spy(engine: Engine, what: Any, original: Any = original, **options: Any) -> Any:
            asked.append(options)
            return original(engine, what, **options)

        monkeypatch.setattr(Engine, name, spy)
    flags = (
        "--temp", 0.5, "--top-k", 40, "--top-p", 0.9, "--min-p", 0.05, "--repeat-penalty", 1.1,
        "--presence-penalty", -1, "--frequency-penalty", 0.5, "--stop", "###", "--stop", "\n\n",
        "--seed", 3, "-n", 4, "--device", device,
    )  # fmt: skip
    assert call("chat", model, *flags, stdin="Hello\n").code == 0
    assert call("run", model, "Hello", *flags, "--system", "Brief.", "--logprobs", 2).code == 0
    expected = {
        "temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.1,
        "presence_penalty": -1.0, "frequency_penalty": 0.5, "stop": ("###", "\n\n"), "seed": 3,
        "max_tokens": 4,
    }  # fmt: skip
    assert asked == [expected, {**expected, "raw": False, "system": "Brief.", "logprobs": 2}]


def test_a_model_without_a_chat_template(call: Call, device: str, tmp_path: Path) -> None:
    model = clk_engine.variation(tmp_path / "plain.gguf", template=None)
    result = call("chat", model, "--device", device, stdin="Hello\n")
    assert (result.code, result.out) == (1, "")
    assert "the model has no chat template" in result.err


def test_a_system_message_that_the_template_refuses(
    call: Call, device: str, tmp_path: Path
) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ messages[-1]['content'] }}"
    )
    model = clk_engine.variation(tmp_path / "strict.gguf", template=template)
    arguments = ("chat", model, *GREEDY, "--device", device)
    result = call(*arguments, "--system", "Be brief.", stdin="Hello\n")
    assert (result.code, result.out) == (1, "")
    assert "no system role" in result.err
    assert call(*arguments, stdin="/system Be brief.\nHello\n").out == ""
    assert call(*arguments, stdin="Hello\n").out


def test_input_that_is_no_text(model: Path, device: str) -> None:
    process = clk_cli.start(
        "chat", model, *GREEDY, "--device", device, env={"PYTHONIOENCODING": "utf-8:strict"}
    )
    out, err = process.communicate(b"\xff\xfe what is this\n", timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert err.decode().splitlines()[-1].startswith("error: a message is not UTF-8")


def test_answers_come_while_the_pipe_is_open(model: Path, device: str) -> None:
    """Another program may talk: it waits for an answer before it sends the next message."""
    process = clk_cli.start("chat", model, *GREEDY, "--json", "--device", device)
    try:
        for question in ("Who are you?", "And then?"):
            process.stdin.write(f"{question}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["prompt"] == question
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
