"""``clkiln check``: is what a model runs on a device right, and what replaces what is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from .common import alone, echo, model_argument, note, print_json, shared, warn, wrapped
from .completers import devices
from .values import Text

if TYPE_CHECKING:
    from ..inference.against import Comparison
    from ..inference.engine import Engine
    from ..inference.findings import CheckResult

#: Columns of the names of operations and variants, and of lines that begin with a word.
_OP, _WORD = 19, 9


@click.command("check")
@model_argument
@click.option("--repeat", type=click.IntRange(1, 1000), default=3, show_default=True, metavar="N",
              help="Launches of each step on the same inputs; bits must agree.")  # fmt: skip
@click.option("--against", metavar="DEVICE", type=Text(), shell_complete=devices,
              help="Compare with another device instead, step by step.")  # fmt: skip
@click.option("--kv-dtype", type=click.Choice(["f32", "f16"]), default="f32", show_default=True,
              help="Keys and values.")  # fmt: skip
@shared("quantize", "device", "cache", "variant", "limits", "json")
def command(
    model: str,
    repeat: int,
    against: str | None,
    kv_dtype: str,
    quantize: str | None,
    device: str | None,
    cache: Path | None,
    variant: tuple[str, ...],
    limits: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run MODEL step by step on the device and compare each step with NumPy.

    What is wrong, or not the same every time, is named and banned for this driver; the next best
    takes its place and is checked in turn. Ends with 0 if what runs now is right, a ban or not, and
    with 1 if something is wrong that could not be replaced.
    """
    from ..inference.engine import Engine

    load = partial(
        Engine.load, kv_dtype=kv_dtype, quantize=quantize, variant=variant, limits=limits,
        check=False, warn=warn,
    )  # fmt: skip
    if against is not None:
        source = click.get_current_context().get_parameter_source("repeat")
        alone("--against", repeat=source is not ParameterSource.DEFAULT)
        code = _against(partial(load, model), device, cache, against, as_json)
    else:
        code = _check(partial(load, model, device, cache), repeat, as_json)
    click.get_current_context().exit(code)


def _check(load: Callable[[], Engine], repeat: int, as_json: bool) -> int:
    from ..inference.check import examine
    from ..inference.exam import Effort
    from .progress import doing

    engine = load()
    cache_file = engine.store.path
    note(f"checking {engine.config.name} on {engine.device.name} ({engine.device_reason})")
    with doing("checking") as show:
        result, left = examine(engine, load, Effort(repeat=repeat), show)
    if left is not None:
        left.close()
    for each in result.banned:
        warn(f"banned for this driver, as it is wrong: {each['what']}")
    if as_json:
        print_json({**result.as_dict(), "cache_file": cache_file and str(cache_file)})
    else:
        _print(result)
    return 0 if result.ok else 1


def _print(result: CheckResult) -> None:
    head = ("launches", "compared", "random", "worst error", "allowed")
    echo(_row("operation", "variant", *head))
    for tally in result.operations:
        numbers = (tally.launches, tally.compared, tally.random)
        errors = (f"{tally.worst:.1e}", f"{tally.allowed:.0e}" if tally.allowed else "equal")
        echo(_row(tally.op, tally.variant, *map(str, numbers), *errors))
    echo()
    for fault in result.faults:
        wrapped(f"{'wrong':<{_WORD}}", str(fault))
    for each in result.banned:
        wrapped(f"{'banned':<{_WORD}}", each["what"])
    if result.same is not None:
        bits = "the same bits" if result.same else "NOT the same bits"
        wrapped(f"{'repeats':<{_WORD}}", f"{result.repeat}, each launch and the whole plan: {bits}")
    for logits in result.logits:
        error = "not finite" if logits.error is None else f"{logits.error:.1e}"
        text = f"{error} off the chain of references after {logits.positions} positions"
        wrapped(f"{'logits':<{_WORD}}", f"{text} ({logits.allowed:.0e} allowed)")
    for line in result.notes:
        wrapped(f"{'note':<{_WORD}}", line)
    wrapped(f"{'verdict':<{_WORD}}", _verdict(result))


def _verdict(result: CheckResult) -> str:
    compared = f"{result.compared} of {result.launches} launches compared in {result.seconds:.0f} s"
    if result.problem:
        return f"WRONG: {result.problem}"
    if result.banned:
        return f"right now, what was wrong is replaced ({compared})"
    return f"right ({compared})"


def _row(op: str, variant: str, *cells: str) -> str:
    widths = (9, 10, 8, 13, 9)
    numbers = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{op:<{_OP}}{variant:<9}{numbers}"


# -- two devices -------------------------------------------------------------------------------


def _against(
    load: Callable[..., Engine], device: str | None, cache: Path | None, against: str, as_json: bool
) -> int:
    from ..errors import UsageError
    from ..inference.against import compare_devices
    from ..runtime.device import select_device
    from .progress import doing

    second = select_device(against)
    with load(device, cache) as one, load(second) as other:
        if one.device.driver_key == other.device.driver_key:
            raise UsageError(f"--against {against!r} is the same device: {one.device.name}")
        note(f"comparing {_full(one)} with {_full(other)}")
        with doing("comparing") as show:
            found = compare_devices(one, other, show)
    if as_json:
        print_json(found.as_dict())
    else:
        _print_comparison(found)
    return 0 if found.first is None else 1


def _full(engine: Engine) -> str:
    return f"{engine.device.platform}: {engine.device.name}"


def _print_comparison(found: Comparison) -> None:
    echo(f"{'operation':<{_OP}}{'variants':<17}{'steps':>7}{'worst difference':>18}"
               f"{'allowed':>9}")  # fmt: skip
    groups: dict[tuple[str, tuple[str, str]], list[int]] = {}
    for index, step in enumerate(found.steps):
        groups.setdefault((step.op, step.variants), []).append(index)
    for (op, variants), places in groups.items():
        steps = [found.steps[place] for place in places]
        odd = any(step.error is None for step in steps)
        worst = max(steps, key=lambda s: float("inf") if s.error is None else s.error / s.allowed
                    if s.allowed else s.error)  # fmt: skip
        error = "not finite" if odd else f"{worst.error:.1e}"
        names = variants[0] if variants[0] == variants[1] else ", ".join(variants)
        allowed = f"{worst.allowed:.0e}" if worst.allowed else "equal"
        echo(f"{op:<{_OP}}{names:<17}{len(steps):>7}{error:>18}{allowed:>9}")
    echo()
    for answer in found.logits:
        error = "not finite" if answer.error is None else f"{answer.error:.1e}"
        pick = "the same token" if answer.same_pick else "ANOTHER token"
        text = f"{error} apart after {answer.positions} positions on their own, {pick}"
        wrapped(f"{'logits':<{_WORD}}", text)
    if found.unmatched:
        wrapped(f"{'note':<{_WORD}}", f"{found.unmatched} steps are of one device alone: pieces of "
                "matrices that its limits ask for, and conversions")  # fmt: skip
    first = found.first
    if first is None:
        wrapped(f"{'verdict':<{_WORD}}", f"they part nowhere ({len(found.steps)} steps)")
        return
    error = "not finite" if first.error is None else f"{first.error:.1e} apart"
    text = f"they part at {first.workload}, {first.place}: {error}, {first.allowed:.0e} allowed"
    for name, off in zip(found.devices, first.errors or (), strict=False):
        text += f"; {name} is {'not finite' if off is None else f'{off:.1e} off'} the reference"
    wrapped(f"{'verdict':<{_WORD}}", text)
