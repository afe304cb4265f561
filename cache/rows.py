"""The rows of a cache file, as plain data. Times are seconds; texts are canonical forms.

``workload`` and ``config`` are opaque texts here: the cache knows nothing of what a kernel means.
``driver`` is the driver key (a digest of platform, device and driver versions), ``digest`` the
kernel's own digest: together they say whether a result still holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: How a trial can end. Everything but ``ok`` is a failure that is kept and never tried again.
STATUSES = (
    "ok",
    "constraint",
    "compile error",
    "launch error",
    "crash",
    "timeout",
    "wrong result",
)


@dataclass(frozen=True)
class DriverRow:
    """A driver under which something was tuned or compiled; ``info`` describes the device."""

    driver: str
    info: dict[str, Any]
    first_seen: str = ""


@dataclass(frozen=True)
class TrialRow:
    """One configuration tried. ``time`` is the median of ``repeats`` runs, None where it failed."""

    workload: str
    driver: str
    digest: str
    config: str
    status: str
    time: float | None = None
    spread: float | None = None
    repeats: int = 0
    compile_time: float | None = None
    error: float | None = None
    message: str = ""
    layout: str | None = None
    run: int | None = None
    created: str = ""
    id: int | None = None


@dataclass(frozen=True)
class BestRow:
    """The chosen configuration of a workload, beside what the safe default takes."""

    workload: str
    driver: str
    digest: str
    config: str
    time: float
    default_time: float | None = None
    layout: str | None = None
    complete: bool = False
    updated: str = ""


@dataclass(frozen=True)
class RunRow:
    """One run of the tuner: what it was asked, what it cost, what it gained."""

    model: str
    level: str
    driver: str
    budget: float | None = None
    started: str = ""
    ended: str | None = None
    seconds: float | None = None
    result: dict[str, Any] = field(default_factory=dict)
    id: int | None = None


@dataclass(frozen=True)
class BinaryRow:
    """A compiled program without its bytes, as ``cache info`` and the report list it.

    ``used`` is when it was last taken from the file, to the day; empty if it never was.
    """

    key: str
    label: str
    size: int
    driver: str
    created: str
    used: str = ""
