"""``clkiln pull``: fetch a model of the catalog."""

from __future__ import annotations

import click

from .common import is_terminal, model_argument, print_json, shared


@click.command("pull")
@model_argument
@shared("json")
def command(model: str, as_json: bool) -> None:
    """Fetch MODEL, a catalog entry such as smollm2-135m; one that is there already stays."""
    from ..inference.catalog import pull

    if not is_terminal():
        path = pull(model)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

        columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(model)
            path = pull(model, lambda done, total: bar.update(task, completed=done, total=total))
    if as_json:
        print_json({"model": model, "path": str(path), "bytes": path.stat().st_size})
    else:
        click.echo(path)
