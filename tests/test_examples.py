"""The scripts under examples/ run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import clk_engine

EXAMPLES = Path(__file__).parents[1] / "examples"
#: What to call each script with, what to type, and what has to come out.
RUNS = {
    "ask.py": (["What is the capital of France?"], "", ""),
    "chat.py": ([], "What is the capital of France?\nAnd of Italy?\n", "tokens prefilled"),
    "errors.py": ([], "", "too long: the prompt has"),
    "stream.py": (["Name three colours."], "", "ended by: "),
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == RUNS.keys()


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(name: str) -> None:
    arguments, typed, expected = RUNS[name]
    out = run(name, clk_engine.small_model(), *arguments, typed=typed)
    assert out.strip()
    assert expected in out


@pytest.mark.long
def test_a_newer_turn_of_the_chat_reuses_the_older(model_file: Path) -> None:
    """With the real model, as its first lines say."""
    out = run("chat.py", model_file, typed="What is the capital of France?\nAnd of Italy?\n")
    first, second = out.splitlines()
    assert first.startswith("The capital of France is Paris.")
    assert ", 0 reused" in first
    assert ", 0 reused" not in second


def run(name: str, *arguments: object, typed: str) -> str:
    """Standard output of an example on the tests' device."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        input=typed,
        capture_output=True,
        text=True,
        env={**os.environ, "CLKILN_DEVICE": clk_engine.a_device().info.selector},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
