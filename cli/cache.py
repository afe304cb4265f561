"""``clkiln cache``: the cache file's path and content; checking, pruning and emptying it.

Bans and pins are in ``rules.py``, export and import in ``transfer.py``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import CacheError
from .common import (
    CONTEXT,
    cache_path,
    confirmed,
    echo,
    existing_cache,
    note,
    print_json,
    shared,
    warn,
    wrapped,
)
from .rules import ban_command, pin_command, rules_command, unban_command, unpin_command
from .transfer import export_command, import_command

if TYPE_CHECKING:
    from ..cache.rows import BinaryRow
    from ..reports.health import Health


@click.group("cache", context_settings=CONTEXT)
def command() -> None:
    """Where the cache file of a device lies, what is in it; checking, pruning, emptying it."""


for _each in (
    *(ban_command, unban_command, pin_command, unpin_command, rules_command),
    *(export_command, import_command),
):
    command.add_command(_each)


@command.command("path", context_settings=CONTEXT)
@shared("device", "cache", "json")
def path_command(device: str | None, cache: Path | None, as_json: bool) -> None:
    """Print the path of the cache file; the file need not exist."""
    path = cache_path(device, cache)
    if as_json:
        print_json({"cache_file": str(path), "exists": path.exists()})
    else:
        click.echo(path)


@command.command("info", context_settings=CONTEXT)
@shared("device", "cache", "json")
def info_command(device: str | None, cache: Path | None, as_json: bool) -> None:
    """Show size, row counts and drivers of the cache file."""
    from ..cache.store import Store
    from ..units import readable

    with Store.open(existing_cache(device, cache), write=False) as store:
        info = store.info()
    if as_json:
        print_json(info)
        return
    echo(f"file      {info['path']}")
    echo(f"size      {readable(info['size'])}, schema {info['schema']}")
    counts = ", ".join(f"{count} {table}" for table, count in info["rows"].items())
    echo(f"rows      {counts}")
    echo(f"binaries  {readable(info['binary_bytes'])}")
    for row in info["drivers"]:
        name, version = (row["info"].get(key, "?") for key in ("name", "driver_version"))
        echo(f"driver    {name} {version}, first seen {row['first_seen']}")


@command.command("verify", context_settings=CONTEXT)
@shared("device", "cache", "json")
def verify_command(device: str | None, cache: Path | None, as_json: bool) -> None:
    """Look for damage in all of the cache file, and change nothing.

    Checks SQLite's pages, the digest of every program, and that parameters belong to kernels. Ends
    with 1 if something is damaged, and says what to do.
    """
    from ..reports.health import examine
    from ..runtime.device import list_devices

    path = existing_cache(device, cache)
    try:
        health = examine(path, [found.info for found in list_devices()])
    except CacheError as error:
        if not as_json:
            raise
        finding = {"damage": True, "what": str(error), "todo": ""}
        print_json({"cache_file": str(path), "ok": False, "findings": [finding]})
        click.get_current_context().exit(1)
    if as_json:
        print_json(_health_as_json(health))
    else:
        _print_health(health)
    click.get_current_context().exit(1 if health.damaged else 0)


def _health_as_json(health: Health) -> dict[str, Any]:
    contents = health.contents
    return {
        "cache_file": str(contents.path),
        "ok": not health.damaged,
        "size": contents.size,
        "schema": contents.schema,
        "rows": _counts(health),
        "damaged_binaries": len(contents.damaged),
        "obsolete_binaries": len(health.obsolete),
        "findings": [asdict(finding) for finding in health.findings],
    }


def _counts(health: Health) -> dict[str, int]:
    contents = health.contents
    tables = ("drivers", "runs", "trials", "best", "binaries")
    counts = {table: len(getattr(contents, table)) for table in tables}
    counts["binaries"] += len(contents.damaged)
    return {**counts, "facts": contents.facts}


def _print_health(health: Health) -> None:
    from ..units import readable

    contents = health.contents
    echo(f"file      {contents.path}")
    echo(f"size      {readable(contents.size)}, schema {contents.schema}")
    echo("rows      " + ", ".join(f"{n} {name}" for name, n in _counts(health).items()))
    for finding in health.findings:
        wrapped("damage    " if finding.damage else "note      ", f"{finding.what}.")
        wrapped("          ", f"-> {finding.todo}")
    echo(f"verdict   {'damaged' if health.damaged else 'sound'}")


@command.command("prune", context_settings=CONTEXT)
@click.option("--max-size", metavar="SIZE", help="Most the file may take, for example 50MB.")
@click.option(
    "--older-than",
    metavar="DAYS",
    type=click.IntRange(min=0, max=36500),
    help="Also what was not used for so many days.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, delete nothing.")
@shared("device", "cache", "json")
def prune_command(
    max_size: str | None,
    older_than: int | None,
    dry_run: bool,
    device: str | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Delete compiled programs that are not needed, and make the file smaller.

    Those that are damaged, or of kernels or drivers that were replaced since, always go. With
    --max-size the least recently used go, too, until the file is small enough. Parameters and
    trials stay; a deleted program is compiled again when it is needed.
    """
    from ..cache.codec import now
    from ..cache.store import Store
    from ..reports.health import obsolete_programs
    from ..runtime.device import list_devices, parse_size

    most = None if max_size is None else parse_size(max_size, "--max-size")
    since = None if older_than is None else now(days_ago=older_than)
    path = existing_cache(device, cache)
    with Store.open_copy(path) if dry_run else Store.open(path) as store:
        before = store.bytes
        present = [found.info for found in list_devices()]
        obsolete = obsolete_programs(store.binaries(), store.drivers(), present)
        gone = store.prune(obsolete, max_size=most, unused_since=since)
        after = store.bytes
    if as_json:
        programs = [{"label": row.label, "size": row.size, "used": row.used} for row in gone]
        sizes = {"size_before": before, "size_after": after}
        print_json({"cache_file": str(path), "dry_run": dry_run, **sizes, "deleted": programs})
    else:
        _print_pruned(gone, before, after, dry_run)
    if most is not None and after > most:
        warn(
            f"the file takes {after} bytes and not {most}: parameters and trials stay "
            "(clkiln cache clear deletes them, too), or another process holds the file"
        )


def _print_pruned(gone: list[BinaryRow], before: int, after: int, dry_run: bool) -> None:
    from ..reports.text import plural
    from ..units import readable

    size = readable(sum(row.size for row in gone))
    would, takes = ("would delete", "would take") if dry_run else ("deleted", "takes")
    echo(
        f"{would} {plural(len(gone), 'program')} ({size}); "
        f"the file {takes} {readable(after)}, before {readable(before)}"
    )


@command.command("clear", context_settings=CONTEXT)
@click.option("--binaries", is_flag=True, help="Only compiled programs; keep what was learnt.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@shared("device", "cache", "json")
def clear_command(
    binaries: bool, yes: bool, device: str | None, cache: Path | None, as_json: bool
) -> None:
    """Empty the cache file; it asks first."""
    from ..cache.store import Store

    path = existing_cache(device, cache)
    what = "the compiled programs" if binaries else "all parameters, trials and programs"
    if not yes and not confirmed(f"Delete {what} in {path}?"):
        note("nothing was deleted")
        return
    with Store.open(path) as store:
        count = store.clear(binaries_only=binaries)
    if as_json:
        print_json({"cache_file": str(path), "deleted": count})
    else:
        echo(f"deleted {count} rows from {path}")
