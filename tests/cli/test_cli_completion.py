"""Shell completion: the scripts, what they are answered, and a bash that really completes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import clk_engine
from clk_cli import Result
from clkiln.cli.app import COMMANDS

Call = Callable[..., Result]


def complete(call: Call, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """What bash is offered for the last word of ``line``, which may be empty."""
    monkeypatch.setenv("_CLKILN_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    result = call()
    assert (result.code, result.err) == (0, "")
    return [word for word in result.out.splitlines() if word]


def plain(*words: str) -> list[str]:
    return [f"plain,{word}" for word in words]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("clkiln re", plain("report")),
        ("clkiln cook", []),
        ("clkiln cache p", plain("path", "pin", "prune")),
        ("clkiln cache ban gemv=", plain("gemv=buffer", "gemv=image")),
        ("clkiln cache unpin gem", plain("gemm", "gemv")),
        ("clkiln run --seed 3 smoll", ["file,smoll", *plain("smollm2-135m")]),
        ("clkiln tune ./mod", ["file,./mod"]),
        ("clkiln bench m.gguf -o ", plain("md", "json", "csv")),
        ("clkiln tune m.gguf --level e", plain("exhaustive")),
        ("clkiln tune m.gguf --kernel gem", plain("gemm", "gemv")),
        ("clkiln run m.gguf --variant i", plain("image")),
        ("clkiln run m.gguf --temp", plain("--temp", "--temperature")),
        ("clkiln devices --device g", plain("gpu")),
        ("clkiln completion f", plain("fish")),
    ],
)
def test_what_is_offered(
    call: Call, monkeypatch: pytest.MonkeyPatch, line: str, offered: list[str]
) -> None:
    assert complete(call, monkeypatch, line) == offered


def test_devices_are_offered_by_index(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    index = str(clk_engine.a_device().info.index)
    assert f"plain,{index}" in complete(call, monkeypatch, "clkiln devices --device ")

    def fail() -> None:
        raise RuntimeError("no driver today")

    monkeypatch.setattr("clkiln.runtime.device.list_devices", fail)
    assert complete(call, monkeypatch, "clkiln devices --device ") == plain("cpu", "gpu")


def test_commands_are_offered_without_opencl(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete(call, monkeypatch, "clkiln ") == plain(*COMMANDS)
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "clkiln"],
        env={**os.environ, "COMP_WORDS": "clkiln run m.gguf -", "COMP_CWORD": "3"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "--temp" in process.stdout
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"pyopencl", "numpy", "optuna", "rich"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(call: Call, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    named = call("completion", shell)
    assert named.code == 0
    assert f"_CLKILN_COMPLETE={shell}_complete" in named.out
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert call("completion") == named


def test_a_shell_that_nobody_knows(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("completion", "tcsh").code == 2
    for shell in ("/bin/tcsh", ""):
        monkeypatch.setenv("SHELL", shell)
        result = call("completion")
        assert (result.code, result.out) == (2, "")
        assert "Name one: bash, zsh, fish" in result.err


def test_bash_completes(tmp_path: Path) -> None:
    """As bash does it: the script is loaded, and its function fills COMPREPLY for a line."""
    program = tmp_path / "clkiln"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m clkiln "$@"\n')
    program.chmod(0o755)
    script = tmp_path / "test.bash"
    script.write_text(
        # compopt works only while a person completes.
        "compopt() { :; }\n"
        'eval "$(clkiln completion bash)"\n'
        'function=$(complete -p clkiln | sed "s/.*-F \\([^ ]*\\).*/\\1/")\n'
        "try() { COMP_WORDS=($1); COMP_CWORD=$2; COMPREPLY=(); $function clkiln;"
        ' echo "${COMPREPLY[*]}"; }\n'
        'try "clkiln dev" 1\n'
        'try "clkiln tune x --lev" 3\n'
        'try "clkiln run smol" 2\n'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.run(
        ["bash", "--norc", script], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines() == ["devices", "--level", "smollm2-135m"]
