"""``clkiln cache export`` and ``import``: what was learnt moves between machines."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import CacheError
from .common import CONTEXT, cache_path, echo, existing_cache, note, print_json, shared, warn
from .values import FilePath


@click.command("export", context_settings=CONTEXT)
@click.argument("file", type=FilePath())
@click.option("--binaries", is_flag=True, help="Compiled programs, too.")
@shared("device", "cache", "json")
def export_command(
    file: Path, binaries: bool, device: str | None, cache: Path | None, as_json: bool
) -> None:
    """Write what was learnt to FILE, a text that clkiln cache import takes on another machine.

    Parameters, trials, measured speeds, bans and pins, of all drivers of the cache file, a line
    each. The same rows make the same bytes.
    """
    from ..cache.exchange import write_export
    from ..cache.store import Store
    from ..harness.transfer import portable

    path = existing_cache(device, cache)
    with Store.open_copy(path) as store:
        learnt = portable(store.learnt(programs=binaries))
    written = write_export(file, learnt)
    counts = written.counts()
    left = {table: count - counts[table] for table, count in learnt.counts().items()}
    if as_json:
        print_json({"cache_file": str(path), "export": str(file), "rows": counts, "left_out": left})
    else:
        echo(f"wrote {_said(counts)} to {file}")
    if any(left.values()):
        warn(f"left out, as no import would take it: {_said(left)}; see clkiln cache verify")


@click.command("import", context_settings=CONTEXT)
@click.argument("files", metavar="FILE...", type=FilePath(), nargs=-1, required=True)
@click.option(
    "--trust-binaries",
    is_flag=True,
    help="Take compiled programs, too: their maker's code runs here.",
)
@click.option("--without-rules", is_flag=True, help="Leave bans and pins as they are here.")
@shared("device", "cache", "json")
def import_command(
    files: tuple[Path, ...],
    trust_binaries: bool,
    without_rules: bool,
    device: str | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Take from exports what was learnt elsewhere: all of it, or after an error nothing.

    Parameters of the very same driver are used as if they had been found here; those of another
    one are candidates, verified before use and timed again by the next tune. Programs are compiled
    from source here. The order of files does not matter, nor does taking one twice. Without
    --cache only what was learnt on the same device is taken.
    """
    from ..cache.exchange import read_export
    from ..cache.layered import LayeredStore
    from ..cache.learnt import Learnt, merge
    from ..harness.transfer import check_rows, check_shipped, combine, of_device, tied_problems
    from ..harness.transfer import without_rules as drop_rules
    from ..runtime.device import select_device, selector_from_environment

    info = None
    if cache is None:
        info = select_device(device or selector_from_environment()).info
    path = cache_path(device, cache)
    parts = []
    for file in files:
        part = read_export(file)
        check_rows(part, str(file))
        parts.append(part if info is None else of_device(part, info.name, info.platform, str(file)))
    if without_rules:
        parts = [drop_rules(part) for part in parts]
    programs = sum(len(part.programs) for part in parts)
    if not trust_binaries:
        parts = [Learnt(p.drivers, p.best, p.trials, p.facts) for p in parts]
    try:
        whole = merge(parts, combine)
        with LayeredStore.open(path, warn=warn) as store:
            check_shipped(store, whole)
            counts = store.merge(whole, combine)
            problems = tied_problems(store, whole)
    except CacheError as error:
        raise CacheError(f"nothing was imported: {error}") from error
    for problem in problems:
        warn(problem)
    if as_json:
        left = 0 if trust_binaries else programs
        print_json({"cache_file": str(path), "new": counts, "programs_left_out": left})
        return
    echo(f"took {_said(counts)} into {path}")
    if programs and not trust_binaries:
        note(f"{programs} compiled programs were left out; --trust-binaries takes them")


def _said(counts: dict[str, int]) -> str:
    from ..reports.text import plural

    names = {"best": "choice", "trials": "trial", "facts": "fact", "drivers": "driver",
             "programs": "program"}  # fmt: skip
    said = [plural(counts[table], name) for table, name in names.items() if counts[table]]
    return ", ".join(said) or "nothing new"
