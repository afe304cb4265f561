"""The command line on a terminal of its own (a pseudo-terminal), as a person sees and types it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clk_cli import COMMAND

#: What a person's terminal is sent beside text: colours, cursor moves, bracketed paste.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]")
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


class Terminal:
    """``screen`` is everything that was shown so far, control sequences included."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process, self._master = process, master
        self.screen, self._seen = "", 0

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def rest(self) -> None:
        """Let the other side come to wait for input: Python's readline loses a Ctrl-C that comes
        between its prompt and its wait."""
        time.sleep(0.5)

    def line(self, text: str) -> None:
        self.type(text + "\n")

    def expect(self, text: str, timeout: float = 60) -> str:
        """Wait for ``text`` after what was waited for before; what came up to its end."""
        deadline = time.monotonic() + timeout
        while True:
            found = ESCAPES.sub("", self.screen[self._seen :])
            if text in found:
                # Escapes shift places: look for the shortest beginning that has it.
                end = self._seen + len(text)
                while text not in ESCAPES.sub("", self.screen[self._seen : end]):
                    end += 1
                self._seen = end
                return found[: found.index(text) + len(text)]
            if not self._read(deadline):
                raise AssertionError(f"{text!r} did not come; the screen shows {self.screen!r}")

    def some(self, count: int, timeout: float = 60) -> None:
        """Wait for ``count`` more characters."""
        deadline = time.monotonic() + timeout
        while len(self.screen) < self._seen + count:
            if not self._read(deadline):
                raise AssertionError(
                    f"no {count} characters came; the screen shows {self.screen!r}"
                )
        self._seen = len(self.screen)

    def end(self, timeout: float = 60) -> int:
        """Wait for the process to end; its exit code (negative: the signal)."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        return self.process.wait(max(1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        """Whether there was more to read, or may be yet."""
        ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other end was closed
            return False
        self.screen += data.decode("utf-8", "replace")
        return bool(data)


@contextmanager
def terminal(
    *arguments: object,
    columns: int = 80,
    env: dict[str, str] | None = None,
    stdout: int | None = None,
    program: Sequence[str] = COMMAND,
) -> Iterator[Terminal]:
    """``clkiln ...``, or another program, on a terminal; ``stdout`` elsewhere if wanted.

    It is killed at the end.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def control() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    own = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"TERM": "xterm-256color", **(env or {})}
    process = subprocess.Popen(
        [*program, *map(str, arguments)],
        stdin=slave,
        stdout=slave if stdout is None else stdout,
        stderr=slave,
        preexec_fn=control,
        env=environment,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
