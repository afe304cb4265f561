"""How long a tuning run may take: levels are amounts of time for the whole model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class Level:
    """``seconds`` for the whole run (None: no limit) and at most ``trials`` for one workload."""

    name: str
    rank: int
    seconds: float | None
    trials: int | None


LEVELS = {
    level.name: level
    for level in (
        Level("fast", 1, 45.0, 20),
        Level("normal", 2, 300.0, 100),
        Level("wide", 3, 1800.0, 600),
        Level("exhaustive", 4, None, None),
    )
}

_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_budget(text: str) -> float:
    """``90s``, ``5m``, ``1.5h`` or plain seconds. Raises :class:`~clkiln.errors.UsageError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip().lower())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"budget {text!r}: write for example 90s, 5m or 1h")
    return float(match[1]) * _UNITS.get(match[2], 1)
