"""``clkiln pull``: fetch a model of the catalog or of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from .common import is_terminal, model_argument, note, print_json, shared
from .values import Text

if TYPE_CHECKING:
    from ..inference.wheel import Progress

#: Characters of a file's name beside the bar, so that all fits 80 columns.
_NAME = 24


@click.command("pull")
@model_argument
@click.option(
    "--revision", metavar="NAME", type=Text(), help="Branch, tag or commit of a hub model."
)
@shared("json")
def command(model: str, revision: str | None, as_json: bool) -> None:
    """Fetch MODEL; what is there already stays.

    MODEL is a catalog entry such as smollm2-135m, or owner/name[:FILE] of the Hugging Face hub
    (pip install 'clkiln[hub]'). FILE is a .gguf file or a quantisation such as Q8_0; without it the
    only one is taken, or Q4_K_M, Q4_0, Q8_0, ... whichever is there first. A repository without
    .gguf files is taken as a directory of safetensors. An interrupted pull goes on where it ended.
    HF_TOKEN and HF_ENDPOINT hold.
    """
    from ..inference.catalog import pull
    from ..inference.installed import bytes_of

    with _bar() if is_terminal() else _lines() as progress:
        path = pull(model, progress, revision=revision)
    if as_json:
        print_json({"model": model, "path": str(path), "bytes": bytes_of(path)})
    else:
        click.echo(path)


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(16), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("looking", total=None)

        def show(what: str, done: int, total: int) -> None:
            name = what if len(what) <= _NAME else f"…{what[1 - _NAME :]}"
            bar.update(task, description=escape(name), completed=done, total=total)

        yield show


@contextmanager
def _lines() -> Iterator[Progress]:
    """One line for each file: a log has no use for more."""
    from ..units import readable

    told = ""

    def show(what: str, done: int, total: int) -> None:
        nonlocal told
        if what != told:
            told = what
            note(f"fetching {what} ({readable(done)} of {readable(total)} done)")

    yield show
