"""What a check found: how each operation did, what was wrong, and what was done about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Literal

from ..kernels.types import Config, Workload
from .graph import Graph

Kind = Literal["wrong", "same", "failed"]

#: Beginning of the name of the fact that keeps a model's latest check.
CHECK = "check:"


def check_fact(graph: Graph) -> str:
    """The name of that fact. Other dtypes of the KV cache or of the weights are other programs."""
    weights = graph.weights.dtype("blk.0.gate_up")
    return f"{CHECK}{graph.config.digest} kv={graph.kv} w={weights}"


@dataclass(frozen=True)
class Fault:
    """A launch that went wrong.

    ``kind``: ``wrong`` every time, not the ``same`` every time, or ``failed`` to run at all.
    ``place`` says where in the model, ``error`` the relative L2 error (None: not finite, or none).
    """

    workload: Workload
    config: Config
    place: str
    kind: Kind
    message: str
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.workload} {self.config}, {self.place}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "op": self.workload.op,
            "variant": self.config.variant,
            "workload": str(self.workload),
            "config": str(self.config),
            "place": self.place,
            "kind": self.kind,
            "error": self.error,
            "message": self.message,
        }


@dataclass
class Tally:
    """How one variant of an operation did: ``launches`` were made of the plan (each of them
    repeated), ``compared`` of them with the reference, and ``random`` programs on random inputs.

    ``worst`` is the error that came closest to what is ``allowed`` for it, or passed it.
    """

    op: str
    variant: str
    launches: int = 0
    compared: int = 0
    random: int = 0
    worst: float = 0.0
    allowed: float = 0.0

    def note(self, error: float, allowed: float) -> None:
        if not isfinite(error):
            return
        if not self.allowed or error * self.allowed > self.worst * allowed:
            self.worst, self.allowed = error, allowed


@dataclass(frozen=True)
class Logits:
    """Relative L2 error of the whole model's logits after ``positions`` positions, against the
    chain of the operations' references in float64."""

    positions: int
    error: float | None
    allowed: float


@dataclass
class CheckResult:
    """What a check did.

    ``ok`` says that nothing is wrong with what runs from now on: ``faults`` of which each led to
    something that is ``banned`` count no more. ``problem`` says what is still wrong, ``standing``
    what of it should be banned and could not be. ``same`` says whether the whole plan gave the same
    bits each of the ``repeat`` times; None if it was not run.
    """

    model: str
    device: str
    driver_version: str
    repeat: int
    short: bool = False
    checked: str = ""
    seconds: float = 0.0
    rounds: int = 0
    operations: list[Tally] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    banned: list[dict[str, str]] = field(default_factory=list)
    logits: list[Logits] = field(default_factory=list)
    same: bool | None = None
    problem: str = ""
    standing: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problem

    @property
    def launches(self) -> int:
        return sum(tally.launches for tally in self.operations)

    @property
    def compared(self) -> int:
        return sum(tally.compared for tally in self.operations)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON and for the cache file."""
        data = {
            name: getattr(self, name)
            for name in (
                "model", "device", "driver_version", "checked", "seconds", "short", "ok",
                "problem", "repeat", "rounds", "launches", "compared", "same", "banned", "notes",
            )
        }  # fmt: skip
        return {
            **data,
            "operations": [asdict(tally) for tally in self.operations],
            "faults": [fault.as_dict() for fault in self.faults],
            "logits": [asdict(each) for each in self.logits],
        }


def tally_of(tallies: Sequence[Tally], op: str, variant: str) -> Tally | None:
    return next((t for t in tallies if (t.op, t.variant) == (op, variant)), None)
