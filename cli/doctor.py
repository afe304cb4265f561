"""``clkiln doctor``: what is wrong with this machine, and what would make it faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict

import click

from . import checks, hints
from .checks import Check, Machine
from .common import echo, print_json, shared, wrapped

CHECKS: tuple[Callable[[Machine], Iterator[Check]], ...] = (
    checks.check_versions,
    checks.check_drivers,
    checks.check_devices,
    checks.check_gpus,
    checks.check_folders,
    checks.check_cache_files,
    checks.check_environment,
    checks.check_limits,
    hints.check_drivers_to_try,
    hints.check_tuning,
)
_INDENT = " " * 9


@click.command("doctor")
@shared("json")
def command(as_json: bool) -> None:
    """Look at drivers, permissions, cache files, versions, and what would make all of it faster.

    Each line is ok, a note, or a problem, and says what to do. Ends with 1 if there is a problem:
    what keeps models from running.
    """
    found = examine()
    healthy = not any(check.status == "problem" for check in found)
    if as_json:
        print_json({"ok": healthy, "checks": [asdict(check) for check in found]})
    else:
        _print(found)
    click.get_current_context().exit(0 if healthy else 1)


def examine() -> list[Check]:
    """What every check says; one that stumbles is a note, and the others go on."""
    try:
        machine = checks.look()
    except Exception as error:
        machine = Machine((), f"listing the devices failed: {checks.line_of(error)}")
    found: list[Check] = []
    for check in CHECKS:
        try:
            # One by one: what was seen before it stumbled counts.
            for each in check(machine):
                found.append(each)
        except Exception as error:
            topic = check.__name__.removeprefix("check_").replace("_", " ")
            text = f"could not be looked at: {checks.line_of(error)}"
            found.append(Check(topic, "note", text))
    return found


def _print(found: list[Check]) -> None:
    for check in found:
        wrapped(f"{check.status:<9}", f"{check.topic}: {check.text}")
        if check.todo:
            wrapped(f"{_INDENT}-> ", check.todo)
    counts = Counter(check.status for check in found)
    plural = "" if counts["problem"] == 1 else "s"
    notes = "" if counts["note"] == 1 else "s"
    echo(f"\n{counts['problem']} problem{plural}, {counts['note']} note{notes}")
