"""One kernel's part of the report: its trials and its winner, held against the roof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..cache.rows import STATUSES, BestRow, TrialRow
from ..kernels.spec import KernelSpec
from ..kernels.types import Config
from . import roof as roofline
from .model import KernelReport, Roof, Step
from .text import label

#: No time (s), rate (1/s) or amount of a real device lies beyond these; what does is garbled. It
#: also keeps every ratio and sum of such numbers finite, as JSON asks.
SMALLEST, LARGEST = 1e-15, 1e18


def positive(value: Any) -> float | None:
    """``value`` as a float if it can be a time or a rate: a number above zero and within reason."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if SMALLEST <= value <= LARGEST else None


def count(value: Any) -> int | None:
    """``value`` if it is a whole number that can count something."""
    return value if type(value) is int and 0 <= value <= LARGEST else None


def in_order(outcomes: Mapping[str, int]) -> dict[str, int]:
    """Outcomes that occurred, in the order of :data:`STATUSES`, unknown ones last."""
    known = {status: outcomes[status] for status in STATUSES if outcomes.get(status)}
    return known | {status: outcomes[status] for status in sorted(outcomes.keys() - known.keys())}


def kernel_reports(
    trials: Iterable[TrialRow],
    best: Iterable[BestRow],
    *,
    roof: Roof,
    specs: Mapping[str, KernelSpec],
    name: str | None = None,
) -> tuple[KernelReport, ...]:
    """One report for each workload (and version of its kernel) of one driver's rows.

    ``name`` keeps an operation, or the workloads whose text holds it. The kernels that take most
    time come first, results of other versions of a kernel last.
    """
    tried: dict[tuple[str, str], list[TrialRow]] = {}
    for trial in trials:
        tried.setdefault((trial.workload, trial.digest), []).append(trial)
    chosen = {(row.workload, row.digest): row for row in best}
    keys = _named(dict.fromkeys((*chosen, *tried)), name)
    reports = [
        _kernel(key, tried.get(key, []), chosen.get(key), roof=roof, specs=specs) for key in keys
    ]
    return tuple(sorted(reports, key=_rank))


def _named(keys: Iterable[tuple[str, str]], name: str | None) -> list[tuple[str, str]]:
    """The keys of operation ``name``; without such an operation, of workloads that hold it."""
    keys = list(keys)
    if name is None:
        return keys
    exact = [key for key in keys if operation(key[0]) == name]
    return exact or [key for key in keys if name in key[0]]


def operation(workload: str) -> str:
    """The operation's name in a workload's text, whether the rest can be read or not."""
    return workload.partition(" ")[0]


def _rank(kernel: KernelReport) -> tuple[bool, float, str]:
    slowest_first = -(kernel.time or kernel.default_time or 0.0)
    return kernel.outdated, slowest_first, kernel.workload


def _kernel(
    key: tuple[str, str],
    trials: Sequence[TrialRow],
    best: BestRow | None,
    *,
    roof: Roof,
    specs: Mapping[str, KernelSpec],
) -> KernelReport:
    workload, digest = key
    spec = specs.get(operation(workload))
    cost = roofline.cost(workload, specs)
    time = positive(best.time) if best else None
    default_time = positive(best.default_time) if best else None
    variant = _variant(best.config) if best else None
    return KernelReport(
        workload=workload,
        label=label(workload),
        op=operation(workload),
        outdated=spec is not None and spec.digest() != digest,
        complete=best is not None and best.complete,
        variant=variant,
        kind=_kind(spec, variant),
        config=best.config if best else None,
        layout=best.layout if best else None,
        time=time,
        spread=_spread(best, trials),
        default_time=default_time,
        speedup=default_time / time if time and default_time else None,
        flops=cost.flops if cost else None,
        bytes=cost.bytes if cost else None,
        bytes_per_s=cost.bytes / time if cost and time else None,
        flops_per_s=cost.flops / time if cost and time else None,
        roof=roofline.share(cost, roof, time, default_time),
        trials=len(trials),
        outcomes=in_order(Counter(trial.status for trial in trials)),
        compile_time=sum(positive(trial.compile_time) or 0.0 for trial in trials),
        measure_time=sum(_measured(trial) for trial in trials),
        progress=_progress(trials, default_time),
    )


def _variant(config: str) -> str | None:
    try:
        return Config.parse(config).variant
    except ValueError:
        return None


def _kind(spec: KernelSpec | None, variant: str | None) -> str | None:
    if spec is None or variant is None:
        return None
    return next((known.kind for known in spec.variants if known.name == variant), None)


def _spread(best: BestRow | None, trials: Sequence[TrialRow]) -> float | None:
    """The spread of the winner's own trial, as a fraction of its time."""
    for trial in trials if best else ():
        time, spread = positive(trial.time), positive(trial.spread)
        if best and trial.config == best.config and time and spread:
            return spread / time
    return None


def _measured(trial: TrialRow) -> float:
    """Seconds in the timed launches of a trial."""
    return (positive(trial.time) or 0.0) * max(trial.repeats, 0)


def _progress(trials: Sequence[TrialRow], default_time: float | None) -> tuple[Step, ...]:
    """The search from the default on: a step for each improvement, and one for its end.

    The clock is the time spent in trials, so that a search that was continued has no gap.
    """
    best = default_time
    steps = [Step(0, 0.0, default_time)] if default_time else []
    spent = 0.0
    for number, trial in enumerate(trials, start=1):
        spent += (positive(trial.compile_time) or 0.0) + _measured(trial)
        time = positive(trial.time) if trial.status == "ok" else None
        if time is not None and (best is None or time < best):
            best = time
            steps.append(Step(number, spent, time))
    if best is not None and steps[-1].trial < len(trials):
        steps.append(Step(len(trials), spent, best))
    return tuple(steps)
