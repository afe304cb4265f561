"""``clkiln cache ban`` and its kin: which variants may run on a driver, whatever was measured."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .common import CONTEXT, echo, print_json, shared, warn, wrapped
from .completers import choices, operations

if TYPE_CHECKING:
    from ..kernels.rules import Rules
    from ..runtime.device import DeviceInfo

OP_VARIANT = click.argument("choice", metavar="OP=VARIANT", shell_complete=choices)


@click.command("ban", context_settings=CONTEXT)
@OP_VARIANT
@click.option("--reason", default="by hand", metavar="TEXT", help="Why; it is kept beside the ban.")
@shared("device", "cache", "limits", "json")
def ban_command(
    choice: str,
    reason: str,
    device: str | None,
    cache: Path | None,
    limits: tuple[str, ...],
    as_json: bool,
) -> None:
    """Never use a variant of an operation on this driver, for example gemv=image.

    It holds for runs and for tuning, whatever was measured, until clkiln cache unban.
    """
    from ..cache.codec import now
    from ..kernels.rules import Ban

    op, variant = _parsed(choice)

    def change(rules: Rules, info: DeviceInfo) -> Rules:
        if rules.pins.get(op) == variant:
            raise UsageError(f"{choice} is pinned: clkiln cache unpin {op} first")
        banned = rules.ban(op, variant, Ban(reason, since=now()))
        _check_left(banned, info, op, f"banning {choice}")
        return banned

    _change(change, device, cache, limits, as_json, op, f"banned {choice}")


@click.command("unban", context_settings=CONTEXT)
@OP_VARIANT
@shared("device", "cache", "limits", "json")
def unban_command(
    choice: str, device: str | None, cache: Path | None, limits: tuple[str, ...], as_json: bool
) -> None:
    """Allow a banned variant again, and its configurations that were banned one by one."""
    op, variant = _parsed(choice)

    def change(rules: Rules, info: DeviceInfo) -> Rules:
        allowed = rules.unban(op, variant)
        if allowed == rules:
            raise UsageError(f"{choice} is not banned; clkiln cache rules lists what is")
        return allowed

    _change(change, device, cache, limits, as_json, op, f"{choice} may be used again", again=True)


@click.command("pin", context_settings=CONTEXT)
@OP_VARIANT
@shared("device", "cache", "limits", "json")
def pin_command(
    choice: str, device: str | None, cache: Path | None, limits: tuple[str, ...], as_json: bool
) -> None:
    """Always use one variant of an operation on this driver, for example gemm=buffer.

    It holds for runs and for tuning until clkiln cache unpin; --variant goes before it. Operations
    that read the same weights follow.
    """
    op, variant = _parsed(choice)

    def change(rules: Rules, info: DeviceInfo) -> Rules:
        ban = rules.variants.get((op, variant))
        if ban is not None:
            todo = f"clkiln cache unban {choice} first"
            raise UsageError(f"{choice} is banned ({ban.reason}): {todo}")
        pinned = rules.pin(op, variant)
        _check_left(pinned, info, op, f"pinning {choice}")
        return pinned

    _change(change, device, cache, limits, as_json, op, f"pinned {choice}", again=True)


@click.command("unpin", context_settings=CONTEXT)
@click.argument("operation", metavar="OP", shell_complete=operations)
@shared("device", "cache", "limits", "json")
def unpin_command(
    operation: str, device: str | None, cache: Path | None, limits: tuple[str, ...], as_json: bool
) -> None:
    """Let an operation take any variant again."""
    from ..kernels.survey import find_spec

    # What was pinned may be typed as it was when it was pinned.
    op = find_spec(operation.partition("=")[0]).op

    def change(rules: Rules, info: DeviceInfo) -> Rules:
        if op not in rules.pins:
            raise UsageError(f"{op} is not pinned; clkiln cache rules lists what is")
        return rules.unpin(op)

    _change(
        change, device, cache, limits, as_json, op, f"{op} may take any variant again", again=True
    )


@click.command("rules", context_settings=CONTEXT)
@shared("device", "cache", "limits", "json")
def rules_command(
    device: str | None, cache: Path | None, limits: tuple[str, ...], as_json: bool
) -> None:
    """List what is banned and pinned for the device's driver, and why."""
    from ..harness.rules import rules_on_file

    info, path = _place(device, cache, limits)
    rules = rules_on_file(path, info.driver_key, warn)
    if as_json:
        print_json(_as_json(path, info, rules))
        return
    if not rules:
        echo(f"nothing is banned or pinned for {info.name}")
    for (op, variant), ban in rules.variants.items():
        wrapped(f"banned  {op}={variant}: ", f"{ban.reason} ({_origin(ban.by, ban.since)})")
    for (workload, config), ban in rules.configs.items():
        origin = _origin(ban.by, ban.since)
        wrapped("banned  ", f"{workload} {config}: {ban.reason} ({origin})")
    for op, variant in rules.pins.items():
        echo(f"pinned  {op}={variant}")


def _origin(by: str, since: str) -> str:
    who = "clkiln check" if by == "check" else "by hand"
    return f"{who}, {since[:10]}" if since else who


def _parsed(text: str) -> tuple[str, str]:
    """``gemv=image``. Raises :class:`~clkiln.errors.UsageError`, with a guess."""
    from ..kernels.survey import find_spec

    op, sign, variant = text.partition("=")
    spec = find_spec(op)
    names = [known.name for known in spec.variants]
    if not sign or not variant:
        raise UsageError(f"{text!r}: write OP=VARIANT; {op} has {', '.join(names)}")
    if variant not in names:
        close = get_close_matches(variant.lower(), names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"{op} has no variant {variant!r}{hint} (there is {', '.join(names)})")
    return op, variant


def _check_left(rules: Rules, info: DeviceInfo, op: str, doing: str) -> None:
    """Raise :class:`~clkiln.errors.UsageError` if ``op`` could not run any more."""
    from ..kernels.rules import SHARING, places

    if not places(rules, info, [op]):
        raise UsageError(
            f"{doing} leaves no variant of {op} that {info.name} can run: "
            f"clkiln kernels {op} shows which there are, clkiln cache rules what is banned"
        )
    linear = SHARING[:2]
    if op in linear and not places(rules, info, linear):
        raise UsageError(
            f"{doing} leaves no place for weights: {' and '.join(linear)} read the same ones, and "
            "would want them in different memory (clkiln cache rules lists bans and pins)"
        )


def _place(
    device: str | None, cache: Path | None, limits: tuple[str, ...]
) -> tuple[DeviceInfo, Path]:
    """The device whose driver is meant, and the cache file; rules are kept per driver."""
    from ..cache.paths import cache_file
    from ..runtime.device import select_device, selector_from_environment
    from ..runtime.pretend import asked_limits, limited_devices

    devices = limited_devices(asked_limits(limits))
    info = select_device(device or selector_from_environment(), devices).info
    return info, cache or cache_file(info.name, info.platform)


def _change(
    change: Callable[[Rules, DeviceInfo], Rules],
    device: str | None,
    cache: Path | None,
    limits: tuple[str, ...],
    as_json: bool,
    op: str,
    done: str,
    again: bool = False,
) -> None:
    """Change the rules of ``op`` and say so; ``again``: it is to be searched anew."""
    from ..cache.layered import LayeredStore
    from ..cache.rows import DriverRow
    from ..harness.rules import change_rules, rules_on_file
    from ..kernels.rules import TIED, tied_problem
    from ..tuner.record import reopen

    info, path = _place(device, cache, limits)
    # What is refused leaves no file behind, and no driver for the next export to carry.
    change(rules_on_file(path, info.driver_key), info)
    with LayeredStore.open(path, warn=warn) as store:
        rules = change_rules(store, info.driver_key, lambda rules: change(rules, info))
        store.put_driver(DriverRow(info.driver_key, info.as_dict()))
        if again:
            reopen(store, info.driver_key, op)
    if op in TIED and (problem := tied_problem(rules, info)):
        warn(problem)
    if as_json:
        print_json(_as_json(path, info, rules))
    else:
        echo(f"{done} on {info.name} ({info.driver_version}), kept in {path}")


def _as_json(path: Path, info: DeviceInfo, rules: Rules) -> dict[str, Any]:
    return {"cache_file": str(path), "device": info.name, **rules.as_dict()}
