"""What a tuning run did, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: What a run without a model is called in place of the model's name.
STANDARD = "standard shapes"


@dataclass(frozen=True)
class TuneSummary:
    """What a tuning run did.

    ``seconds`` is the time searched, ``kernels`` the workloads searched (those wanted, where
    ``already_done`` says that there was nothing left to do), ``trials`` the configurations tried
    and ``by_status`` how many of them ended how. ``decode_*`` and ``prefill_*`` are tokens per
    second of the whole model with safe defaults (``before``) and with what is kept now
    (``after``); None where they were not measured. ``speedup`` is there without a model only: how
    much quicker than safe defaults the workloads searched are now, as a geometric mean. ``check``
    is what the check at the end found: ``ok``, ``launches`` of which some were ``compared``, what
    was ``banned``, a ``problem`` that is left, ``seconds``; None if there was none.
    """

    model: str
    device: str
    cache_file: str
    level: str
    already_done: bool
    kernels: int
    trials: int = 0
    seconds: float = 0.0
    by_status: Mapping[str, int] = field(default_factory=dict)
    decode_before: float | None = None
    decode_after: float | None = None
    prefill_before: float | None = None
    prefill_after: float | None = None
    speedup: float | None = None
    check: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; where nothing was left to do, without figures of a search."""
        data = asdict(self)
        if self.already_done:
            return {name: data[name] for name in _WITHOUT_SEARCH}
        del data["check" if self.model == STANDARD else "speedup"]
        return data


_WITHOUT_SEARCH = ("model", "device", "cache_file", "level", "already_done", "kernels", "trials")
