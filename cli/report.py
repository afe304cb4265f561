"""``clkiln report``: what was searched, found and kept."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..errors import CacheError
from .common import note, print_json, shared
from .completers import operations
from .values import FilePath


@click.command("report")
@click.argument("cachefiles", nargs=-1, metavar="[CACHEFILE]...", type=FilePath())
@click.option("--html", type=FilePath(),
              help="Write one self-contained page.")  # fmt: skip
@click.option("--kernel", metavar="NAME", shell_complete=operations, help="Only this operation.")
@shared("device", "cache", "json")
def command(
    cachefiles: tuple[Path, ...],
    html: Path | None,
    kernel: str | None,
    device: str | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Show what tuning found, from each CACHEFILE; the device need not be there.

    Without CACHEFILE: the file of --device, or every file in the cache folder.
    """
    from ..reports.data import collect

    paths = list(cachefiles) or ([cache] if cache else _default_files(device))
    reports = [collect(path, kernel) for path in paths]
    if html is not None:
        from ..reports.html import write_html

        write_html(reports, html)
        note(f"wrote {html.resolve()}")
    if as_json:
        print_json([report.as_json() for report in reports])
    elif html is None:
        from rich.console import Console

        from ..reports.terminal import render

        console = Console()
        for report in reports:
            render(report, console)


def _default_files(device: str | None) -> list[Path]:
    from ..cache.paths import cache_file, cache_folder

    device = device or os.environ.get("CLKILN_DEVICE")
    if device:
        from ..runtime.device import select_device

        info = select_device(device).info
        return [cache_file(info.name, info.platform)]
    files = sorted(cache_folder().glob("*.sqlite"))
    if not files:
        raise CacheError(
            f"no cache file in {cache_folder()}: nothing was tuned yet; run clkiln tune MODEL"
        )
    return files
