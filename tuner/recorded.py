"""Spaces whose every configuration was measured once: reading and writing the files they come in.

Read are Kernel Tuner's cache files (its ``cache`` schema 1.x, also while they are still written to)
and results in the T4 format of the autotuning community (github.com/TuningSchema/T4, version
1.0.0), plain or gzipped. T4 is what clkiln writes. Times in these files are milliseconds unless
they say otherwise; here they are seconds.
"""

from __future__ import annotations

import gzip
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.rows import TrialRow
from ..errors import UsageError
from .grid import Floats

#: Kernel Tuner's phases of a trial, and those of T4 besides the runs themselves.
CACHE_PHASES = (
    "compile_time", "verification_time", "benchmark_time", "strategy_time", "framework_time",
)  # fmt: skip
T4_PHASES = ("compilation_time", "validation", "framework", "search_algorithm")
#: Seconds of each unit that a measurement may name; none is Kernel Tuner's, milliseconds.
UNITS = {
    "": 1e-3,
    "ms": 1e-3,
    "milliseconds": 1e-3,
    "s": 1.0,
    "seconds": 1.0,
    "us": 1e-6,
    "ns": 1e-9,
}
#: How a trial may end in our words, in T4's, and which of ours stands for each of Kernel Tuner's.
INVALIDITY = {
    "ok": "correct",
    "constraint": "constraints",
    "compile error": "compile",
    "launch error": "runtime",
    "crash": "runtime",
    "timeout": "timeout",
    "wrong result": "correctness",
}
ENDS = {
    "correct": "ok",
    "constraints": "constraint",
    "compile": "compile error",
    "runtime": "launch error",
    "timeout": "timeout",
    "correctness": "wrong result",
    "InvalidConfig": "constraint",
    "CompilationFailedConfig": "compile error",
    "RuntimeFailedConfig": "launch error",
}
#: The configuration's entry that says which of several spaces in one T4 file it belongs to.
WORKLOAD = "workload"


@dataclass(frozen=True)
class RecordedTrial:
    """What trying ``config`` came to: seconds of the kernel (None: failed), seconds it all took."""

    config: dict[str, Any]
    status: str
    time: float | None
    cost: float


class RecordedSpace:
    """The trials of one kernel at one size on one device, each configuration once.

    ``parameters``: name -> values; ``times`` [configurations] in seconds, NaN where it failed;
    ``costs`` [configurations] in seconds, of compiling, checking and timing it.
    """

    def __init__(self, name: str, trials: Iterable[RecordedTrial]) -> None:
        once = {config_text(trial.config): trial for trial in trials}
        self.name = name
        self.trials = list(once.values())
        self.index = {text: index for index, text in enumerate(once)}
        self.configs = [trial.config for trial in self.trials]
        self.parameters: dict[str, list[Any]] = {}
        for config in self.configs:
            for key, value in config.items():
                values = self.parameters.setdefault(key, [])
                if value not in values:
                    values.append(value)
        self.times: Floats = np.array([math.nan if t.time is None else t.time for t in self.trials])
        self.costs: Floats = np.array([trial.cost for trial in self.trials])

    @property
    def optimum(self) -> float | None:
        """The least time, in seconds."""
        return None if np.isnan(self.times).all() else float(np.nanmin(self.times))


def config_text(config: Mapping[str, Any]) -> str:
    """A configuration as a text that is the same for equal ones."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def read_spaces(path: Path) -> list[RecordedSpace]:
    """The spaces in a file. Raises :class:`~clkiln.errors.UsageError` where it holds none."""
    data = _parse(path)
    try:
        if isinstance(data.get("cache"), dict):
            spaces = [_from_cache(path, data)]
        elif isinstance(data.get("results"), list):
            spaces = _from_t4(path, data["results"])
        else:
            raise UsageError(f"{path}: neither a Kernel Tuner cache file nor T4 results")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: a damaged recorded space ({error!r}); export it again") from None
    if not any(space.trials for space in spaces):
        raise UsageError(f"{path}: no configuration is recorded in it")
    return spaces


def _parse(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (EOFError, ValueError) as error:
        raise UsageError(f"{path}: cut short or no text ({error})") from None
    # Kernel Tuner closes its file when it ends; before that two braces are missing.
    for whole in (text, text.rstrip().rstrip(",") + "}}"):
        try:
            data = json.loads(whole)
        except ValueError:
            continue
        if isinstance(data, dict):
            return data
        break
    raise UsageError(f"{path}: not a JSON file of recorded trials; it may be cut short")


def _from_cache(path: Path, data: dict[str, Any]) -> RecordedSpace:
    keys = data["tune_params_keys"]
    trials = []
    for row in data["cache"].values():
        time = _time(row["time"], 1e-3)
        status = "ok" if time is not None else ENDS.get(str(row["time"]), "launch error")
        cost = sum(_number(row.get(phase)) for phase in CACHE_PHASES) / 1e3
        trials.append(RecordedTrial({key: row[key] for key in keys}, status, time, cost))
    name = " on ".join(str(data[key]) for key in ("kernel_name", "device_name") if data.get(key))
    return RecordedSpace(name or path.name, trials)


def _from_t4(path: Path, results: list[dict[str, Any]]) -> list[RecordedSpace]:
    by_name: dict[str, list[RecordedTrial]] = {}
    for row in results:
        config = dict(row["configuration"])
        name = str(config.pop(WORKLOAD, path.name))
        status, time = ENDS.get(row["invalidity"], "launch error"), None
        if status == "ok":
            wanted = (row.get("objectives") or ["time"])[0]
            found = next(m for m in row["measurements"] if m["name"] == wanted)
            time = _time(found["value"], UNITS[found.get("unit") or ""])
            status = "ok" if time is not None else "launch error"
        times = row["times"]
        runs = sum(map(_number, times.get("runtimes") or ()))
        cost = (sum(_number(times.get(phase)) for phase in T4_PHASES) + runs) / 1e3
        by_name.setdefault(name, []).append(RecordedTrial(config, status, time, cost))
    return [RecordedSpace(name, trials) for name, trials in by_name.items()]


def _time(value: Any, unit: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value * unit if value > 0 and math.isfinite(value) else None


def _number(value: Any) -> float:
    """Milliseconds of a phase; nothing where they are missing or make no sense."""
    found = _time(value, 1.0)
    return 0.0 if found is None else found


def t4_result(
    config: Mapping[str, Any],
    status: str,
    time: float | None,
    *,
    workload: str | None = None,
    cost: float = 0.0,
    compile_time: float | None = None,
    repeats: int = 0,
    created: str = "",
) -> dict[str, Any]:
    """One trial as T4 writes it. Seconds come in, milliseconds go out.

    ``cost`` is what the trial took besides compiling and the ``repeats`` runs of the kernel.
    """
    ok = status == "ok" and time is not None
    runs = [time * 1e3] * max(1, repeats) if ok and time is not None else []
    return {
        "timestamp": created,
        "configuration": {**({} if workload is None else {WORKLOAD: workload}), **config},
        "objectives": ["time"],
        "times": {
            "compilation_time": (compile_time or 0.0) * 1e3,
            "framework": cost * 1e3,
            "search_algorithm": 0.0,
            "validation": 0.0,
            "runtimes": runs,
        },
        "invalidity": INVALIDITY.get(status, "runtime"),
        "correctness": int(ok),
        "measurements": [{"name": "time", "value": runs[0], "unit": "ms"}] if runs else [],
    }


def t4_of(rows: Iterable[TrialRow]) -> list[dict[str, Any]]:
    """The trials of a cache file as T4 results, by workload.

    Of several times of a configuration it is the median; a configuration that ever failed is a
    failure. Where a workload was tuned under several drivers or versions of the kernel, the latest
    counts alone, because their times do not compare.
    """
    latest: dict[str, tuple[str, str]] = {}
    every: dict[tuple[str, tuple[str, str]], dict[str, list[TrialRow]]] = {}
    for row in rows:
        latest[row.workload] = row.driver, row.digest
        same = every.setdefault((row.workload, latest[row.workload]), {})
        same.setdefault(row.config, []).append(row)
    results = []
    for workload, under in sorted(latest.items()):
        for config, found in every[workload, under].items():
            bad = next((row for row in found if row.status != "ok" or row.time is None), None)
            row = bad or found[-1]
            times = [row.time for row in found if row.time is not None]
            results.append(
                t4_result(
                    json.loads(config),
                    "launch error" if bad and bad.status == "ok" else row.status,
                    None if bad else statistics.median(times),
                    workload=workload,
                    compile_time=max((row.compile_time or 0.0 for row in found), default=0.0),
                    repeats=sum(row.repeats for row in found),
                    created=row.created,
                )
            )
    return results


def t4_document(results: Iterable[dict[str, Any]]) -> str:
    """A T4 results file."""
    return json.dumps({"schema_version": "1.0.0", "results": list(results)}, indent=1) + "\n"
