"""Calling the command line: in this process, which is quick, or in one of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from clkiln.cli import main

COMMAND = [sys.executable, "-m", "clkiln"]


@dataclass(frozen=True)
class Result:
    """What a call left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    def lines(self, start: str) -> list[str]:
        """The lines of standard error that begin with ``start``."""
        return [line for line in self.err.splitlines() if line.startswith(start)]


def caller(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """A function that calls the command line with arguments, and with ``stdin`` on its input."""

    def call(*arguments: object, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Result(end.value.code, out, err)

    return call


def start(*arguments: object, env: dict[str, str] | None = None, **options: Any) -> Any:
    """A process of its own, its streams piped unless ``options`` say otherwise."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [*COMMAND, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, env={**os.environ, **(env or {})}, **{**pipes, **options})
