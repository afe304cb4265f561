"""``clkiln cache``: the cache file's path and content, and emptying it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import CacheError, UsageError
from .common import CONTEXT, note, print_json, shared


@click.group("cache", context_settings=CONTEXT)
def command() -> None:
    """Where the cache file of a device lies, what is in it, and emptying it."""


@command.command("path", context_settings=CONTEXT)
@shared("device", "cache", "json")
def path_command(device: str | None, cache: Path | None, as_json: bool) -> None:
    """Print the path of the cache file; the file need not exist."""
    path = _path(device, cache)
    if as_json:
        print_json({"cache_file": str(path), "exists": path.exists()})
    else:
        click.echo(path)


@command.command("info", context_settings=CONTEXT)
@shared("device", "cache", "json")
def info_command(device: str | None, cache: Path | None, as_json: bool) -> None:
    """Show size, row counts and drivers of the cache file."""
    from ..cache.store import Store
    from ..runtime.memory import readable

    with Store.open(_existing(device, cache), write=False) as store:
        info = store.info()
    if as_json:
        print_json(info)
        return
    click.echo(f"file      {info['path']}")
    click.echo(f"size      {readable(info['size'])}, schema {info['schema']}")
    counts = ", ".join(f"{count} {table}" for table, count in info["rows"].items())
    click.echo(f"rows      {counts}")
    click.echo(f"binaries  {readable(info['binary_bytes'])}")
    for row in info["drivers"]:
        name, version = (row["info"].get(key, "?") for key in ("name", "driver_version"))
        click.echo(f"driver    {name} {version}, first seen {row['first_seen']}")


@command.command("clear", context_settings=CONTEXT)
@click.option("--binaries", is_flag=True, help="Only compiled programs; keep what was learnt.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@shared("device", "cache", "json")
def clear_command(
    binaries: bool, yes: bool, device: str | None, cache: Path | None, as_json: bool
) -> None:
    """Empty the cache file; it asks first."""
    from ..cache.store import Store

    path = _existing(device, cache)
    what = "the compiled programs" if binaries else "all parameters, trials and programs"
    if not yes and not _confirmed(f"Delete {what} in {path}?"):
        note("nothing was deleted")
        return
    with Store.open(path) as store:
        count = store.clear(binaries_only=binaries)
    if as_json:
        print_json({"cache_file": str(path), "deleted": count})
    else:
        click.echo(f"deleted {count} rows from {path}")


def _confirmed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        # No Ctrl-C: standard input ended before there was an answer.
        raise UsageError("nobody there to confirm it: add --yes") from None


def _path(device: str | None, cache: Path | None) -> Path:
    if cache is not None:
        return cache
    from ..cache.paths import cache_file
    from ..runtime.device import select_device, selector_from_environment

    info = select_device(device or selector_from_environment()).info
    return cache_file(info.name, info.platform)


def _existing(device: str | None, cache: Path | None) -> Path:
    path = _path(device, cache)
    if not path.exists():
        raise CacheError(f"there is no cache file {path}: nothing was tuned or run yet")
    return path
