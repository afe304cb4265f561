"""Ctrl-C in a chat: it gives up a line or an answer, and harms neither engine nor chat."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..inference.completion import Stream


class Interrupts:
    """While this is entered, Ctrl-C raises ``KeyboardInterrupt`` only inside :meth:`raised`.

    Elsewhere it cancels the stream that :meth:`cancel` was told of, or is told of next. Where a
    step takes its time, a second says what a third does: it raises ``click.Abort``. Not entered,
    nothing changes.
    """

    def __init__(self) -> None:
        self._raise, self._count = False, 0
        self._stream: Stream | None = None

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Within, it raises; afterwards counting begins anew."""
        self._stream, self._count, self._raise = None, 0, True
        try:
            yield
        finally:
            self._raise = False

    def cancel(self, stream: Stream) -> None:
        """Let Ctrl-C, the one that came already included, cancel ``stream``."""
        self._stream = stream
        if self._count:
            stream.cancel()

    def _handle(self, number: int, frame: object) -> None:
        if self._raise:
            raise KeyboardInterrupt
        self._count += 1
        if self._stream is not None:
            self._stream.cancel()
        if self._count == 2:
            # No print: the signal may have come in the middle of one.
            os.write(2, b"\n(stopping after the step at hand; Ctrl-C once more leaves)\n")
        elif self._count > 2:
            raise click.Abort

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)
