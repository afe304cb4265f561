"""Messages as people type them: line editing, what was typed before, several lines."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import ModuleType

import click

from ..errors import UsageError

PROMPT, MORE = ">>> ", "... "
#: Opens and closes a message of several lines.
BLOCK = '"""'
#: Lines of earlier chats that are kept.
HISTORY_LINES = 1000


class Prompter:
    """Reads messages from standard input; prompts are shown to people only."""

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty()
        # Its own editing needs both ends: without, the terminal's simple one remains.
        self._edited = self.terminal and sys.stdout.isatty()
        self._history = History() if self._edited else None

    def read(self) -> str | None:
        """The next message; None at the end of the input.

        A line that ends with a backslash goes on in the next. What begins with :data:`BLOCK` goes
        on to the next line that ends with one. The end of the input ends a message, too. Raises
        ``KeyboardInterrupt``, which gives up the message.
        """
        line = self._line(PROMPT)
        if line is None:
            return None
        if line.lstrip().startswith(BLOCK):
            return self._block(line.lstrip().removeprefix(BLOCK))
        lines = [line]
        while _goes_on(lines[-1]):
            lines[-1] = lines[-1][:-1]
            following = self._line(MORE)
            if following is None:
                break
            lines.append(following)
        return "\n".join(lines)

    def _block(self, line: str) -> str:
        lines = [line]
        while not lines[-1].rstrip().endswith(BLOCK):
            following = self._line(MORE)
            if following is None:
                return "\n".join(lines)
            lines.append(following)
        lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
        # The marks may stand on lines of their own.
        return "\n".join(lines).removeprefix("\n").removesuffix("\n")

    def _line(self, prompt: str) -> str | None:
        try:
            if self._edited:
                line = input(prompt)
                if self._history:
                    self._history.keep()
                return line
            if self.terminal:
                click.echo(prompt, nl=False, err=True)
            line = sys.stdin.readline()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise UsageError(f"a message is not UTF-8: {error.reason}") from error
        return line.removesuffix("\n") if line else None


def _goes_on(line: str) -> bool:
    """Whether a line ends with a backslash of its own: ``\\\\`` at an end is TeX's line break."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


class History:
    """What was typed, for the arrow keys, in a file of the user's own.

    Each line is added to it at once, so that chats side by side and killed ones keep theirs. Where
    there is no readline, or no such file can be, there is none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._readline, self._length = path or _history_file(), _readline(), 0
        if self._readline is None:
            return
        self._readline.clear_history()
        with contextlib.suppress(OSError):
            self._open(self._readline)
        self._length = self._readline.get_current_history_length()

    def _open(self, readline: ModuleType) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        readline.read_history_file(self._path)
        if readline.get_current_history_length() > 2 * HISTORY_LINES:
            readline.set_history_length(HISTORY_LINES)
            readline.write_history_file(self._path)
            readline.set_history_length(-1)
        self._path.chmod(0o600)

    def keep(self) -> None:
        """Add the line that was just typed, unless readline took it for the one before again."""
        if self._readline is None:
            return
        length = self._readline.get_current_history_length()
        new, self._length = length - self._length, length
        with contextlib.suppress(OSError):
            if new > 0 and hasattr(self._readline, "append_history_file"):
                self._readline.append_history_file(new, self._path)
            elif new > 0:
                self._readline.write_history_file(self._path)


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:
        return None
    return readline


def _history_file() -> Path:
    from ..cache.paths import cache_folder

    return cache_folder() / "chat_history"
