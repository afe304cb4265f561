"""How a model uses workloads: what the tuner needs to know of a model, and all it knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .types import Workload

Phase = Literal["decode", "prefill"]


@dataclass(frozen=True)
class Use:
    """A workload in a model.

    ``launches``: how often one step of ``phase`` launches it. ``steps``: how many such steps a
    typical request takes, so that ``launches * steps * time`` is the workload's share of it.
    ``group`` joins the workloads that read one weight: they are chosen together, in one layout.
    """

    workload: Workload
    phase: Phase
    launches: int
    steps: float
    group: str | None = None

    def cost(self, seconds: float) -> float:
        """Seconds of a typical request that go into this workload at ``seconds`` a launch."""
        return self.launches * self.steps * seconds


def layout_groups(readers: Iterable[tuple[Workload, str]]) -> dict[Workload, str]:
    """Group names from pairs (workload, weight it reads): connected pairs share a group.

    Two layers' weights of one shape are read by the same workload, and so are in one group; a tied
    embedding joins the look-up and the output head.
    """
    names: dict[Workload, str] = {}
    owner: dict[str, str] = {}

    def root(name: str) -> str:
        while owner.setdefault(name, name) != name:
            name = owner[name]
        return name

    pairs = list(readers)
    for workload, weight in pairs:
        first = names.setdefault(workload, weight)
        owner[root(weight)] = root(first)
    return {workload: root(weight) for workload, weight in pairs}
