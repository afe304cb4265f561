"""Reads a cache file into a :class:`Report`. The device that wrote it need not be there.

A cache file may be old, half filled, or from somebody else: whatever it lacks or garbles is left
out of the report and named in its notes.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..cache.rows import BestRow, BinaryRow, DriverRow, RunRow, TrialRow
from ..cache.store import Store
from ..errors import CacheError
from ..kernels import SPECS
from ..runtime.identity import split_key
from .checks import check_reports, rule_reports
from .model import DriverReport, KernelReport, Report, Roof, RunReport, Speed, Totals
from .results import count, in_order, kernel_reports, operation, positive

#: Facts of this name are what the engine measured of itself; the model's digest follows.
SPEED = "speed:"
#: Digits of a digest that stand for a model whose name is not known.
_DIGITS = 16


@dataclass(frozen=True)
class Contents:
    """The rows of a cache file, read at one go. ``facts`` is by driver, then by name."""

    path: str
    size: int
    schema: int
    drivers: tuple[DriverRow, ...]
    trials: tuple[TrialRow, ...]
    best: tuple[BestRow, ...]
    runs: tuple[RunRow, ...]
    binaries: tuple[BinaryRow, ...]
    facts: Mapping[str, Mapping[str, Any]]
    warnings: tuple[str, ...] = ()


def collect(path: str | os.PathLike[str], kernel: str | None = None) -> Report:
    """The report of one cache file; with ``kernel`` only of the kernels of that name.

    ``kernel`` is an operation's name or a part of a workload's text. Raises :class:`CacheError`
    for a file that is missing or no cache file.
    """
    return build(read(Path(path)), kernel)


def build(contents: Contents, kernel: str | None = None) -> Report:
    """The report of rows that were read; see :func:`collect`."""
    workloads = (
        *(trial.workload for trial in contents.trials),
        *(best.workload for best in contents.best),
    )
    operations = {operation(workload) for workload in workloads}
    rows = _drivers(contents)
    latest = {split_key(row.driver)[1]: row.driver for row in reversed(rows)}
    drivers = tuple(
        _driver(contents, row, current=row.driver in latest.values(), kernel=kernel) for row in rows
    )
    return Report(
        path=contents.path,
        size=contents.size,
        schema=contents.schema,
        kernel=kernel,
        operations=tuple(sorted(operations)),
        drivers=drivers,
        binaries=len(contents.binaries),
        binary_bytes=sum(row.size for row in contents.binaries),
        warnings=contents.warnings,
    )


def read(path: Path) -> Contents:
    """Every row of the cache file at ``path``, which is opened read-only.

    What is damaged in it is left out, and said in ``warnings``.
    """
    if not path.is_file():
        raise CacheError(f"no cache file at {path}: `clkiln cache path` names the one of a device")
    warnings: list[str] = []
    with Store.open(path, write=False, warn=warnings.append) as store:
        info = store.info()
        facts: dict[str, dict[str, Any]] = {}
        for (name, driver), value in store.facts().items():
            facts.setdefault(driver, {})[name] = value
        contents = Contents(
            path=str(path),
            size=info["size"],
            schema=info["schema"],
            drivers=tuple(store.drivers()),
            trials=tuple(store.trials()),
            best=tuple(store.best_rows()),
            runs=tuple(store.runs()),
            binaries=tuple(store.binaries()),
            facts=facts,
        )
    return replace(contents, warnings=tuple(warnings))


def _drivers(contents: Contents) -> list[DriverRow]:
    """The drivers, the one used last first: its results are the ones that count. Those under
    limits come behind: there the device only pretended to be another.

    Times in the file are whole seconds; at a tie the driver that was seen later wins.
    """
    used = {row.driver: row.first_seen for row in contents.drivers}
    moments: Iterable[tuple[str, str]] = (
        *((row.driver, row.created) for row in contents.trials),
        *((row.driver, row.updated) for row in contents.best),
        *((row.driver, row.ended or row.started) for row in contents.runs),
        *((row.driver, row.created) for row in contents.binaries),
        *((driver, "") for driver in contents.facts if driver),
    )
    for driver, moment in moments:
        used[driver] = max(used.get(driver, ""), moment)
    known = {row.driver: row for row in contents.drivers}
    found = sorted(used, key=lambda driver: used[driver])
    found.reverse()
    found.sort(key=lambda driver: bool(split_key(driver)[1]))
    return [known.get(driver) or DriverRow(driver, {}) for driver in found]


def _driver(
    contents: Contents, row: DriverRow, *, current: bool, kernel: str | None
) -> DriverReport:
    facts = contents.facts.get(row.driver, {})
    roof = Roof(
        bytes_per_s=positive(facts.get("roof.read_bytes_per_s")),
        flops_per_s=positive(facts.get("roof.flops_per_s")),
    )
    kernels = kernel_reports(
        [trial for trial in contents.trials if trial.driver == row.driver],
        [best for best in contents.best if best.driver == row.driver],
        roof=roof,
        specs=SPECS,
        name=kernel,
    )
    runs = tuple(_run(run) for run in contents.runs if run.driver == row.driver)
    speeds = _speeds(facts)
    binaries = [binary for binary in contents.binaries if binary.driver == row.driver]
    return DriverReport(
        driver=row.driver,
        current=current,
        device=str(row.info.get("name") or "unknown device"),
        platform=str(row.info.get("platform") or ""),
        driver_version=str(row.info.get("driver_version") or ""),
        limits=split_key(row.driver)[1],
        first_seen=row.first_seen,
        roof=roof,
        totals=_totals(kernels, runs),
        kernels=kernels,
        runs=runs,
        speeds=speeds,
        # Of the whole model and device: with a filter they would say too much.
        checks=check_reports(facts) if kernel is None else (),
        rules=rule_reports(facts) if kernel is None else (),
        binaries=len(binaries),
        binary_bytes=sum(binary.size for binary in binaries),
        notes=_notes(roof, kernels, speeds, current=current),
    )


def _run(row: RunRow) -> RunReport:
    result = row.result
    return RunReport(
        model=row.model,
        level=row.level,
        started=row.started,
        budget=positive(row.budget),
        seconds=positive(row.seconds),
        trials=count(result.get("trials")),
        kernels=count(result.get("kernels")),
        decode_before=positive(result.get("decode_before")),
        decode_after=positive(result.get("decode_after")),
        prefill_before=positive(result.get("prefill_before")),
        prefill_after=positive(result.get("prefill_after")),
    )


def _speeds(facts: Mapping[str, Any]) -> tuple[Speed, ...]:
    speeds = []
    for name, value in sorted(facts.items()):
        if not name.startswith(SPEED) or not isinstance(value, Mapping):
            continue
        model, tuned = value.get("model"), value.get("tuned")
        speeds.append(
            Speed(
                model=model if isinstance(model, str) else name.removeprefix(SPEED)[:_DIGITS],
                decode_tok_s=positive(value.get("decode_tok_s")),
                prefill_tok_s=positive(value.get("prefill_tok_s")),
                tuned=tuned if isinstance(tuned, bool) else None,
                measured=str(value.get("measured") or ""),
            )
        )
    return tuple(speeds)


def _totals(kernels: tuple[KernelReport, ...], runs: tuple[RunReport, ...]) -> Totals:
    outcomes: Counter[str] = Counter()
    for kernel in kernels:
        outcomes.update(kernel.outcomes)
    in_use = [kernel for kernel in kernels if not kernel.outdated]
    kinds = Counter(kernel.kind or "unknown" for kernel in in_use if kernel.config)
    gains = [kernel.speedup for kernel in in_use if kernel.speedup]
    ended = [run.seconds for run in runs if run.seconds is not None]
    return Totals(
        trials=sum(outcomes.values()),
        outcomes=in_order(outcomes),
        kinds=dict(kinds.most_common()),
        speedup=math.exp(sum(map(math.log, gains)) / len(gains)) if gains else None,
        roof_share=_roof_share(in_use),
        compile_time=sum(kernel.compile_time for kernel in kernels),
        measure_time=sum(kernel.measure_time for kernel in kernels),
        tune_time=sum(ended) if ended else None,
    )


def _roof_share(kernels: Iterable[KernelReport]) -> float | None:
    times = [(k.roof.seconds, k.time) for k in kernels if k.roof and k.time]
    measured = sum(time for _, time in times)
    return sum(least for least, _ in times) / measured if times else None


def _notes(
    roof: Roof, kernels: tuple[KernelReport, ...], speeds: tuple[Speed, ...], *, current: bool
) -> tuple[str, ...]:
    """What the file lacks, so that a gap in a table explains itself."""
    ceilings = {"memory bandwidth": roof.bytes_per_s, "peak arithmetic": roof.flops_per_s}
    lacking = " and ".join(name for name, per_s in ceilings.items() if per_s is None)
    foreign = sum(kernel.flops is None for kernel in kernels)
    outdated = sum(kernel.outdated for kernel in kernels)
    notes = {
        f"Not measured on this device: {lacking}. There is no share of the roof without.": (
            bool(kernels and lacking)
        ),
        f"Workloads that this version of clkiln does not know, without a roof: {foreign}.": (
            foreign > 0
        ),
        f"Results of another version of a kernel, not in use any more: {outdated}.": outdated > 0,
        "No engine speed was measured yet.": bool(current and kernels and not speeds),
    }
    return tuple(note for note, holds in notes.items() if holds)
