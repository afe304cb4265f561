"""``clkiln kernels``: the operations, what may be tuned of them, what a device can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import CacheError, UsageError
from .common import echo, note, print_json, shared, wrapped
from .completers import operations

if TYPE_CHECKING:
    from ..kernels.capability import Cell
    from ..kernels.rules import Rules
    from ..kernels.survey import VariantSurvey
    from ..kernels.types import Workload
    from ..runtime.device import DeviceInfo
    from .capability import Surveys


@click.command("kernels")
@click.argument("name", required=False, shell_complete=operations)
@click.option(
    "--workload", metavar="TEXT", help="This workload instead of the operation's example."
)
@shared("device", "limits", "json")
def command(
    name: str | None,
    workload: str | None,
    device: str | None,
    limits: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the operations: variants, dtypes, and what of them the device can run.

    With NAME one operation in detail, with its parameters and what each limit of the device rules
    out. The counts are for an example, the operation's workload in SmolLM2-135M, or for --workload
    such as "gemv bias=no fuse=none k=896 n=1152 w=q8_0". Nothing is built.
    """
    from ..kernels import SPECS
    from ..kernels.capability import Capabilities
    from ..kernels.survey import find_spec, parse_workload, survey
    from ..kernels.types import Workload

    if workload is not None:
        asked = [parse_workload(workload)]
        if name not in (None, asked[0].op):
            raise UsageError(f"--workload is of {asked[0].op}, not of {name}")
    else:
        specs = SPECS.values() if name is None else [find_spec(name)]
        asked = [Workload.parse(spec.example) for spec in specs]
    info = _device(device, limits)
    surveys = {each: survey(each, info) for each in asked}
    cells = [] if info is None else Capabilities(info).table(asked)
    rules = _rules(info).of_ops(each.op for each in asked)
    if as_json:
        rows = [_as_json(each, found, cells) for each, found in surveys.items()]
        data = {"device": info and info.as_dict(), "operations": rows}
        print_json({**data, "rules": rules.as_dict()})
    elif name is None and workload is None:
        _print_table(surveys, cells, info)
    else:
        for each, found in surveys.items():
            _print_details(each, found, cells, info)
    if rules and not as_json:
        echo("\nBanned or pinned here:")
        for line in rules.all_lines():
            wrapped("  ", line)


def _rules(info: DeviceInfo | None) -> Rules:
    """What the device's own cache file bans and pins; a file that can't be read says nothing."""
    from ..cache.paths import cache_file
    from ..harness.rules import rules_on_file
    from ..kernels.rules import Rules

    if info is None:
        return Rules()
    try:
        return rules_on_file(cache_file(info.name, info.platform), info.driver_key)
    except CacheError:
        return Rules()


def _device(asked: str | None, limits: tuple[str, ...]) -> DeviceInfo | None:
    """The device to hold the kernels against; without any, and none asked for, None."""
    from ..runtime.device import select_device, selector_from_environment
    from ..runtime.pretend import asked_limits, limited_devices

    selector = asked or selector_from_environment()
    devices = limited_devices(asked_limits(limits))
    if selector is None and not devices:
        note("no OpenCL device here: spaces before the constraints of a device")
        return None
    return select_device(selector, devices).info


def _as_json(
    workload: Workload, found: tuple[VariantSurvey, ...], cells: Sequence[Cell]
) -> dict[str, Any]:
    from ..kernels import SPECS
    from ..kernels.survey import summary
    from . import capability

    spec = SPECS[workload.op]
    return {
        "name": workload.op,
        "summary": summary(spec),
        "digest": spec.digest(),
        "workload": str(workload),
        "example": str(workload) == spec.example,
        "configurations": sum(each.configurations for each in found),
        "feasible": _feasible(found),
        "variants": [
            {
                "name": each.variant.name,
                "kind": each.variant.kind,
                "requires": sorted(each.variant.requires),
                "missing": list(each.missing),
                "parameters": {key: list(values) for key, values in each.parameters.items()},
                "configurations": each.configurations,
                "feasible": each.feasible,
                "dtypes": capability.as_json(cells, each, workload.op),
                "infeasible": [{"reason": why, "count": count} for why, count in each.reasons],
            }
            for each in found
        ],
    }


def _feasible(found: tuple[VariantSurvey, ...]) -> int | None:
    counts = [each.feasible for each in found if each.feasible is not None]
    return sum(counts) if counts else None


def _print_table(surveys: Surveys, cells: Sequence[Cell], info: DeviceInfo | None) -> None:
    from ..kernels import SPECS
    from . import capability

    if info:
        capability.print_table(surveys, cells)
    else:
        echo(_row("operation", "variant", "parameters", "space"))
        for workload, found in surveys.items():
            for place, each in enumerate(found):
                name, space = workload.op if place == 0 else "", f"{each.configurations:,}"
                echo(_row(name, each.variant.name, " ".join(each.parameters), space))
        echo()
    models = " and of ".join(dict.fromkeys(SPECS[each.op].example_model for each in surveys))
    wrapped("", f"Counted for workloads of {models}; clkiln kernels NAME says which.")
    if info:
        wrapped("", f"Feasible on {_called(info)}.")
    if any(cell.config is None for cell in cells):
        echo("\nCannot run here:")
        capability.print_what_cannot_run(cells)


def _called(info: DeviceInfo) -> str:
    limits = ", ".join(map(str, info.limits.entries))
    return f"{info.name}, limited: {limits}" if limits else info.name


def _row(operation: str, variant: str, parameters: str, space: str) -> str:
    return f"{operation:<18}{variant:<12}{parameters:<32}{space:>8}"


def _print_details(
    workload: Workload,
    found: tuple[VariantSurvey, ...],
    cells: Sequence[Cell],
    info: DeviceInfo | None,
) -> None:
    from ..kernels import SPECS
    from ..kernels.survey import description, summary

    spec = SPECS[workload.op]
    wrapped("", f"{workload.op}: {summary(spec)}")
    for paragraph in description(spec):
        echo()
        wrapped("  ", paragraph)
    echo()
    of = f" ({spec.example_model})" if str(workload) == spec.example else ""
    wrapped("workload  ", f"{workload}{of}")
    if info:
        wrapped("device    ", _called(info))
    for each in found:
        _print_variant(each, cells)


def _print_variant(each: VariantSurvey, cells: Sequence[Cell]) -> None:
    from . import capability

    variant = each.variant
    needs = ", ".join(sorted(variant.requires)) or "nothing special"
    kind = "" if variant.kind == variant.name else f" ({variant.kind})"
    echo()
    echo(f"variant {variant.name}{kind}: needs {needs}")
    for name, values in each.parameters.items():
        wrapped(f"  {name:<4}", ", ".join(map(str, values)))
    if not cells:
        echo(f"  {each.configurations:,} configurations")
        return
    if each.missing:
        wrapped("  ", f"cannot run here: the device lacks {', '.join(each.missing)}")
        capability.print_variant(each, cells)
        return
    end = "; not:" if each.reasons else ""
    echo(f"  {each.feasible:,} of {each.configurations:,} configurations can run{end}")
    for why, count in each.reasons:
        wrapped(f"  {count:>7,}  ", why)
    capability.print_variant(each, cells)
