"""On a terminal: chats as people have them, and colours where they are wanted."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import clk_engine
import clk_report_caches
from clk_cli import COMMAND, Result
from clk_terminal import CTRL_C, CTRL_D, ESCAPES, UP, terminal

Call = Callable[..., Result]
#: Select graphic rendition (ECMA-48, 8.3.117) with a colour in it: 30 to 49, 90 to 107.
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:[34]\d|9\d|10\d)[;m]")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that talks for minutes."""
    path = tmp_path_factory.mktemp("endless") / "endless.gguf"
    no_end = {"tokenizer.ggml.eos_token_id": 0}
    return clk_engine.variation(path, context=1 << 17, metadata=no_end)


def python(*statements: str) -> list[str]:
    """The command line behind ``statements``, in a Python of its own."""
    lines = (
        "from clkiln.cli import main",
        "from clkiln.inference.runner import Runner",
        "import time",
    )
    return [sys.executable, "-c", "; ".join((*lines, *statements, "main()"))]


#: At most 20 steps a second, and each shows: what a person would stop is still going on then.
SLOW = python(
    "body = Runner._body",
    "Runner._body = lambda *a, **k: (print(end='~', flush=True), time.sleep(0.05), body(*a, **k))",
)


def test_a_chat(endless: Path, device: str, cache_dir: Path, tmp_path: Path) -> None:
    """One sitting: an answer stopped, several lines, saved, begun anew, the arrow key, the end."""
    path, cache = tmp_path / "talk.json", clk_engine.own_cache(tmp_path / "cache.sqlite")
    options = ("--temp", "1", "--seed", "1", "-n", 10**6, "--verbose")
    words = ("chat", endless, *options, "--device", device, "--cache", cache)
    with terminal(*words, program=SLOW) as person:
        person.expect("/help lists commands")
        person.expect(">>> ")
        person.line("Say all.")
        person.expect("~")
        person.some(8)
        person.type(CTRL_C)
        person.expect("(stopped; what was said so far stays in the conversation)")
        person.expect("prefill:")
        person.expect(">>> ")
        person.line(f"/save {path}")
        person.expect("(saved 2 messages")
        person.expect(">>> ")
        person.line("And\\")
        person.expect("... ")
        person.line("more?")
        person.expect("~")
        person.some(8)
        person.type(CTRL_C)
        person.expect("(stopped")
        assert "reused" in person.expect(">>> ")
        person.line("/reset")
        person.expect("(new conversation)")
        person.expect(">>> ")
        person.line("/cook")
        person.expect("unknown command /cook")
        person.expect(">>> ")
        person.type("never mind")
        person.expect("never mind")
        person.rest()
        person.type(CTRL_C)
        person.expect(">>> ")
        person.rest()
        person.type(CTRL_C)
        person.expect("(Ctrl-D or /quit leaves)")
        person.expect(">>> ")
        person.type(UP + UP + "\n")
        person.expect("(new conversation)")
        person.expect(">>> ")
        person.line(f"/save {path}")
        person.expect("in place of what was there")
        person.expect(">>> ")
        person.type(CTRL_D)
        assert person.end() == 0
    assert json.loads(path.read_text()) == []
    history = cache_dir / "chat_history"
    assert history.read_text().splitlines() == [
        "Say all.", f"/save {path}", "And\\", "more?", "/reset", "/cook", "/reset",
        f"/save {path}",
    ]  # fmt: skip
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_long_prompt_is_stopped(endless: Path, device: str, tmp_path: Path) -> None:
    """Before the first token of the answer: the question counts as never asked."""
    path, cache = tmp_path / "long.json", clk_engine.own_cache(tmp_path / "cache.sqlite")
    story = [{"role": "user", "content": "a, b; " * 3000}, {"role": "assistant", "content": "Hm"}]
    path.write_text(json.dumps(story))
    words = ("chat", endless, "--load", path, "--device", device, "--cache", cache)
    with terminal(*words, program=SLOW) as person:
        person.expect(">>> ")
        person.line("What is it about?")
        person.expect("~")
        person.type(CTRL_C)
        person.expect("(stopped before an answer: the question is taken back)")
        person.expect(">>> ")
        person.line(f"/save {path}")
        person.expect("(saved 2 messages")
        person.expect(">>> ")
        person.type(CTRL_D)
        assert person.end() == 0
    assert json.loads(path.read_text()) == story


def test_a_third_ctrl_c_leaves(endless: Path, device: str, tmp_path: Path) -> None:
    """For a step that does not end: here the engine itself is held up."""
    # A loop that Python steps through: only there it looks for signals that other threads got.
    held = "Runner._body = lambda *a, **k: (print('~'), [time.sleep(0.05) for _ in range(9999)])"
    with terminal("chat", endless, "--device", device, program=python(held)) as person:
        person.expect(">>> ")
        person.line("Hello")
        person.expect("~")
        person.type(CTRL_C)
        time.sleep(0.3)  # two at once are one signal
        person.type(CTRL_C)
        person.expect("(stopping after the step at hand; Ctrl-C once more leaves)")
        person.type(CTRL_C)
        person.expect("interrupted")
        assert person.end() == 130


def test_run_without_a_prompt_is_a_chat(model: Path, device: str) -> None:
    with terminal("run", model, "--temp", "0", "-n", "4", "--device", device) as person:
        person.expect(">>> ")
        person.line("Hello")
        person.expect("(cut off after 4 tokens")
        person.expect(">>> ")
        person.line("/quit")
        assert person.end() == 0


def test_run_raw_without_a_prompt_reads_one(model: Path, device: str) -> None:
    with terminal("run", model, "--raw", "-n", "4", "--device", device) as person:
        person.expect("reading the prompt from standard input, end with Ctrl-D")
        person.line("Hello")
        person.type(CTRL_D)
        assert person.end() == 0
        assert ">>>" not in person.screen


def test_a_chat_whose_answers_go_to_a_file(model: Path, device: str, tmp_path: Path) -> None:
    out = tmp_path / "answers.txt"
    with open(out, "wb") as file:
        options = ("--temp", "0", "-n", "4", "--device", device)
        with terminal("chat", model, *options, stdout=file.fileno()) as person:
            person.expect(">>> ")
            person.line("Hello")
            person.expect(">>> ")
            person.type(CTRL_D)
            assert person.end() == 0
    with clk_engine.engine() as engine:
        messages = [{"role": "user", "content": "Hello"}]
        answer = engine.chat(messages, temperature=0, max_tokens=4).text
    assert out.read_text(encoding="utf-8") == answer + "\n"


def test_errors_end_no_chat(model: Path, device: str, tmp_path: Path) -> None:
    options = ("--temp", "0", "-c", "60", "--device", device)
    with terminal("chat", model, *options, "-n", "99") as person:
        for message, remark in (
            ("Who are you? " * 9, "error: the message does not fit into the context"),
            ("Who are you?", "is full: /reset begins a new conversation"),
            ("And then?", "error: no room in the context of 60 tokens"),
            ("/reset", "(new conversation)"),
            ("Who are you?", "is full"),
            (f"/save {tmp_path}", "error: "),
        ):
            person.expect(">>> ")
            person.line(message)
            person.expect(remark)
        person.expect(">>> ")
        person.type(CTRL_D)
        assert person.end() == 0


def test_what_a_model_makes_up_steers_no_terminal(model: Path, device: str) -> None:
    """A hot random model says any byte; a pipe gets what it said."""
    words = ("run", model, "Hi", "--temp", "9", "--seed", "1", "-n", "200", "--device", device)
    said = subprocess.run([*COMMAND, *map(str, words)], capture_output=True).stdout.decode()
    unseen = {chr(code) for code in (*range(32), 127)} - set("\t\r\n")
    assert unseen & set(said), "the seed draws a control character"
    with terminal(*words) as person:
        assert person.end() == 0
    assert not unseen & set(person.screen)


# -- colours ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache file with results to show."""
    return clk_report_caches.tuned(tmp_path_factory.mktemp("tuned") / "a.sqlite")


@pytest.mark.parametrize("variable", [{}, {"NO_COLOR": "1"}])
def test_colours(tuned: Path, variable: dict[str, str]) -> None:
    with terminal("report", tuned, env=variable) as person:
        assert person.end() == 0
    assert bool(COLOUR.search(person.screen)) == (not variable)
    plain = [ESCAPES.sub("", line) for line in person.screen.splitlines()]
    assert [line for line in plain if len(line) > 80 and str(tuned) not in line] == []


@pytest.mark.parametrize(
    "arguments",
    ["-h", "devices", "report FILE", "cache info --cache FILE", "run MODEL hi -n 2", "cook",
     "tune MODEL --dry-run", "bench MODEL -p 4 -n 2 -r 1"],
)  # fmt: skip
def test_no_escape_codes_in_a_pipe(
    call: Call, model: Path, device: str, tuned: Path, arguments: str
) -> None:
    names = {"MODEL": str(model), "FILE": str(tuned)}
    words = [names.get(word, word) for word in arguments.split()]
    result = call(*words, *(["--device", device] if "MODEL" in arguments else []))
    assert result.out or result.err
    assert "\x1b" not in result.out + result.err
