"""What a report says, as plain data: the terminal, JSON and the HTML page all show the same.

Times are seconds, sizes bytes, shares fractions of one. None means that the cache file does not
say: a figure that was never measured is not a zero.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Bound = Literal["memory", "arithmetic"]

#: The command that fills an empty cache file.
TUNE = "clkiln tune MODEL"


@dataclass(frozen=True)
class Roof:
    """What the device was measured to do at best; the two ceilings of the roofline model."""

    bytes_per_s: float | None = None
    flops_per_s: float | None = None


@dataclass(frozen=True)
class RoofShare:
    """One kernel under its device's roof.

    ``bound`` is the ceiling that binds, ``seconds`` the least time that it allows; the shares are
    that time over the measured ones. A share can exceed one where operands come from a cache.
    """

    bound: Bound
    seconds: float
    share: float | None
    default_share: float | None


@dataclass(frozen=True)
class Step:
    """The search after ``trial`` trials and ``spent`` seconds in them: best ``time`` so far."""

    trial: int
    spent: float
    time: float


@dataclass(frozen=True)
class KernelReport:
    """One workload under one driver: how it was searched and what was found.

    ``outdated`` marks results of another version of the kernel's source, ``complete`` a search
    that came to its end. ``config`` is None where every trial failed, ``kind`` where this version
    does not know the variant.
    """

    workload: str
    label: str
    op: str
    outdated: bool
    complete: bool
    variant: str | None
    kind: str | None
    config: str | None
    layout: str | None
    time: float | None
    spread: float | None
    default_time: float | None
    speedup: float | None
    flops: int | None
    bytes: int | None
    bytes_per_s: float | None
    flops_per_s: float | None
    roof: RoofShare | None
    trials: int
    outcomes: dict[str, int]
    compile_time: float
    measure_time: float
    progress: tuple[Step, ...]


@dataclass(frozen=True)
class Speed:
    """What the engine measured of itself with one model, in tokens per second."""

    model: str
    decode_tok_s: float | None
    prefill_tok_s: float | None
    tuned: bool | None
    measured: str


@dataclass(frozen=True)
class RunReport:
    """One run of the tuner; ``seconds`` is None for one that did not end."""

    model: str
    level: str
    started: str
    budget: float | None
    seconds: float | None
    trials: int | None
    kernels: int | None
    decode_before: float | None
    decode_after: float | None
    prefill_before: float | None
    prefill_after: float | None


@dataclass(frozen=True)
class CheckedOperation:
    """One variant of an operation in a check: the ``worst`` error beside what was ``allowed``."""

    op: str
    variant: str
    launches: int | None
    compared: int | None
    worst: float | None
    allowed: float | None


@dataclass(frozen=True)
class CheckReport:
    """The latest check of a model: what was compared with the reference, and what came of it.

    ``banned`` are pairs of what was found wrong and why; ``problem`` is what could not be replaced.
    """

    model: str
    checked: str
    ok: bool
    problem: str
    short: bool
    seconds: float | None
    repeat: int | None
    launches: int | None
    compared: int | None
    same: bool | None
    logits_error: float | None
    operations: tuple[CheckedOperation, ...]
    banned: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RuleReport:
    """A ban or a pin of a driver; ``by`` is who made it: a check or the user."""

    kind: Literal["banned", "pinned"]
    what: str
    reason: str
    by: str
    since: str


@dataclass(frozen=True)
class Totals:
    """Sums over the kernels of one driver; ``tune_time`` is of the runs that ended.

    ``kinds``, ``speedup`` and ``roof_share`` leave outdated results out.
    ``speedup`` is the geometric mean over the kernels that have both times. ``roof_share`` is the
    time that the roof allows for one launch of each kernel over the time that they take.
    """

    trials: int
    outcomes: dict[str, int]
    kinds: dict[str, int]
    speedup: float | None
    roof_share: float | None
    compile_time: float
    measure_time: float
    tune_time: float | None


@dataclass(frozen=True)
class DriverReport:
    """All that was found under one driver of the device; ``current`` is the one used last.

    ``limits`` is the text of those with which the device pretended to be a smaller one: then it is
    the last used under them.
    """

    driver: str
    current: bool
    device: str
    platform: str
    driver_version: str
    limits: str
    first_seen: str
    roof: Roof
    totals: Totals
    kernels: tuple[KernelReport, ...]
    runs: tuple[RunReport, ...]
    speeds: tuple[Speed, ...]
    checks: tuple[CheckReport, ...]
    rules: tuple[RuleReport, ...]
    binaries: int
    binary_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """One cache file.

    ``kernel`` is the filter that was asked for, ``operations`` what there is without it,
    ``warnings`` what could not be read.
    """

    path: str
    size: int
    schema: int
    kernel: str | None
    operations: tuple[str, ...]
    drivers: tuple[DriverReport, ...]
    binaries: int
    binary_bytes: int
    warnings: tuple[str, ...]

    @property
    def device(self) -> str:
        return self.drivers[0].device if self.drivers else "no device yet"

    @property
    def hint(self) -> str | None:
        """Why there are no kernels to show, and what to do about it; None if there are some."""
        if any(driver.kernels for driver in self.drivers):
            return None
        if self.operations:
            known = ", ".join(self.operations)
            return f"No kernel matches {self.kernel!r}; this file has {known}."
        return f"Nothing was tuned yet: run `{TUNE}`."

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types only; tuples become lists."""
        data = asdict(self)
        data["device"] = self.device
        return _listed(data)  # type: ignore[no-any-return]


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    return value
