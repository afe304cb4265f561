"""The tuner's progress: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .common import is_terminal, note

if TYPE_CHECKING:
    from ..tuner.session import Progress

#: Seconds between two lines where no terminal shows a bar.
QUIET_SECONDS = 10.0


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A callback for the tuner; the bar goes away at the end."""
    if not is_terminal():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    note_column = TextColumn("{task.fields[note]}")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), note_column)
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("tuning", total=None, note="")

        def show(progress: Progress) -> None:
            total = None
            if progress.seconds_left is not None:
                total = progress.seconds + progress.seconds_left
            bar.update(task, completed=progress.seconds, total=total, note=_summary(progress))

        yield show


def _lines() -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= QUIET_SECONDS:
            last = time.monotonic()
            note(f"tuning: {_summary(progress)}")

    return show


def _summary(progress: Progress) -> str:
    """Fits beside the bar at 80 columns."""
    parts = [
        f"{progress.kernels_done}/{progress.kernels} kernels",
        f"x{progress.speedup:.2f}",
    ]
    if progress.roof_share is not None:
        parts.append(f"{progress.roof_share:.0%} of roof")
    if progress.seconds_left is not None:
        parts.append(f"{progress.seconds_left:.0f} s left")
    return ", ".join(parts)


@contextmanager
def doing(what: str) -> Iterator[Callable[[str], None]]:
    """A callback that says what is being done: a line that changes on a terminal, one now and then
    elsewhere."""
    if not is_terminal():
        last = time.monotonic()

        def say(text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= QUIET_SECONDS:
                last = time.monotonic()
                note(f"{what}: {text}")

        yield say
        return
    from rich.console import Console

    with Console(stderr=True).status(what) as status:
        yield lambda text: status.update(f"{what}: {text}")
