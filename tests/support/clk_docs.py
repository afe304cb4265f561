"""Runs what a Markdown page says: its commands, scripts, files to write and lines to add.

Fenced blocks count, by their language:

- ``console``: each line that starts with ``$ `` is a command, and must end with 0; other lines show
  output.
- ``python`` or ``c`` whose first line is a comment with a path: a file to write.
- ``python`` otherwise: a script to run.
- ``diff``: after ``--- path``, lines with ``+`` go in behind the context line above them.

``<!-- not run: reason -->`` above a block says why it is not run here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PATH = re.compile(r"(?:#|//) (?P<path>[\w./-]+\.\w+)\n")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``reason`` says why it is not run, empty where it is."""

    page: Path
    line: int
    language: str
    text: str
    reason: str = ""

    @property
    def commands(self) -> list[str]:
        """The commands of a console block, continued lines joined."""
        joined = self.text.replace("\\\n", " ")
        return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page, line, match["language"], match["text"], match["reason"] or "")


class Reader:
    """Somebody who does what a page says, in ``folder``, with ``environment``."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def follow(self, block: Block) -> None:
        """Do what ``block`` says. Raises ``AssertionError`` with page, line and output."""
        if block.reason:
            return
        path = _PATH.match(block.text)
        if block.language == "console":
            for command in block.commands:
                self._run(block, "bash", "-euo", "pipefail", "-c", command)
        elif block.language == "diff":
            self._patch(block)
        elif block.language in ("python", "c") and path:
            target = self.folder / path["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text[path.end() :], encoding="utf-8")
        elif block.language == "python":
            self._run(block, sys.executable, "-c", block.text)

    def _run(self, block: Block, *command: str) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        where = f"{block.page.name}:{block.line}: {command[-1]}"
        assert done.returncode == 0, f"{where}: {done.returncode}\n{said}"

    def _patch(self, block: Block) -> None:
        target, context = self.folder, ""
        for line in block.text.splitlines(keepends=True):
            if line.startswith("--- "):
                target = self.folder / line[4:].strip()
            elif line.startswith("+"):
                text = target.read_text(encoding="utf-8")
                assert text.count(context) == 1, f"{block.page.name}:{block.line}: {context!r}"
                added = context + line[1:]
                target.write_text(text.replace(context, added), encoding="utf-8")
                context = added
            else:
                context = line[1:]


def commands_on_path(folder: Path, **environment: str) -> dict[str, str]:
    """An environment in which ``clkiln`` and ``python`` are this interpreter's.

    ``CLKILN_TUNE_OPTIONS`` in ``environment`` is added to every ``clkiln tune``.
    """
    programs = folder / "bin"
    programs.mkdir()
    scripts = {
        "python": 'exec "$PYTHON_OF_DOCS" "$@"',
        "clkiln": (
            'case "$*" in *--export*|*--simulate*) ;; tune*)\n'
            'set -- "$@" $CLKILN_TUNE_OPTIONS ;; esac\n'
            'exec "$PYTHON_OF_DOCS" -m clkiln "$@"'
        ),
    }
    for name, text in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHON_OF_DOCS": sys.executable,
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
