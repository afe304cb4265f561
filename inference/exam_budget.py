"""Which launches of a check are compared: references of heavy ones take long."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import ceil

import numpy as np

from ..kernels import SPECS
from ..kernels.types import Config, Workload
from .buckets import token_bucket
from .graph import MATRIX_OPS, Graph
from .launch_view import real_workload, sampled_tokens
from .plan import BoundStep

#: Seconds that a reference takes, by what was measured on one core: to decode a weight, and for
#: an operation in float64.
PER_WEIGHT, PER_FLOP = 1e-8, 3e-11
#: Layers in which a heavy launch is compared at least: the first and the last. A short check takes
#: one, another in each pass.
FEWEST = 2
#: The part of the time that may go into the output head, which is one launch of a pass.
HEADS = 0.25


class Budget:
    """Spreads ``seconds`` of references over ``passes`` of so many tokens each.

    ``bucket`` is the context bucket of so many positions. Where there is little time, or a model is
    large, more is taken: the ``fewest`` layers of each pass, and the head once.
    """

    def __init__(
        self,
        graph: Graph,
        bucket: Callable[[int], int],
        passes: Sequence[int],
        seconds: float,
        fewest: int = FEWEST,
    ) -> None:
        self._fewest, length, body = fewest, 0, 0.0
        for m in passes:
            length += m
            steps = graph.body(token_bucket(m), bucket(length))
            body += sum(reference_seconds(step.workload, m) for step in steps)
        head = sum(reference_seconds(step.workload, 1) for step in graph.head())
        self._of_head = {step.workload for step in graph.head()}
        every = len(passes) * head <= HEADS * seconds
        self._headed: Collection[int] = range(len(passes)) if every else [len(passes) - 1]
        left = max(0.0, seconds - len(self._headed) * head)
        self._share = min(1.0, left / body) if body else 1.0

    def chosen(self, steps: Sequence[BoundStep], turn: int) -> set[int]:
        """Places of the launches of pass ``turn`` that are compared: all but of heavy ones."""
        groups: dict[tuple[Workload, Config], list[int]] = {}
        for index, bound in enumerate(steps):
            groups.setdefault((bound.workload, bound.config), []).append(index)
        chosen: set[int] = set()
        for (workload, _), places in groups.items():
            if workload.op not in MATRIX_OPS or workload.op == "embedding":
                chosen |= {*places}
            elif workload not in self._of_head:
                chosen |= self._some(places, turn)
            elif turn in self._headed:
                chosen |= {*places}
        return chosen

    def _some(self, places: Sequence[int], turn: int) -> set[int]:
        wanted = min(len(places), max(self._fewest, ceil(self._share * len(places))))
        if wanted == 1:
            return {places[-(turn % len(places)) - 1]}
        spread = np.linspace(0, len(places) - 1, wanted).round().astype(int)
        return {places[i] for i in spread}


def weights_of(workload: Workload) -> int:
    """Weights that a reference decodes."""
    sizes = dict(workload.items)
    n, k = sizes.get("n"), sizes.get("k")
    if workload.op not in MATRIX_OPS or not isinstance(n, int) or not isinstance(k, int):
        return 0
    return n * k * (2 if sizes.get("fuse") == "swiglu" else 1)


def reference_seconds(workload: Workload, m: int) -> float:
    """About what the reference of a launch for ``m`` tokens takes; nothing of what is light."""
    if workload.op not in MATRIX_OPS or workload.op == "embedding":
        return 0.0
    tokens = sampled_tokens(workload.op, m)
    real = real_workload(workload, m if tokens is None else len(tokens))
    return PER_WEIGHT * weights_of(real) + PER_FLOP * SPECS[real.op].flops(real)
