"""One program on random inputs, again and again: outliers among them, the same bits each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..kernels.types import Config, Workload
from ..runtime.context import Context
from ..runtime.program import Program
from .compare import Verdict
from .operation import Bound, Operation, check

#: The argument of an operation that takes any activations.
ACTIVATIONS = "x"
#: One in so many of them is an outlier, but of few activations up to half: so many.
SHARE, FEWEST = 16, 64
#: Outliers lie between its inverse and it, as close in every octave.
OUTLIER = 256.0


def with_outliers(inputs: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """``inputs`` with some activations much larger or smaller, as those of real models are."""
    x = inputs.get(ACTIVATIONS)
    if x is None or not np.issubdtype(x.dtype, np.floating):
        return dict(inputs)
    count = max(x.size // SHARE, min(x.size // 2, FEWEST))
    octaves = np.log2(OUTLIER) * (2 * (np.arange(count) + rng.random(count)) / max(count, 1) - 1)
    changed = x.copy()
    places = rng.permutation(x.size)[:count]
    changed.reshape(-1)[places] = np.exp2(octaves) * rng.choice([-1.0, 1.0], count)
    return {**inputs, ACTIVATIONS: changed}


class Often(Operation):
    """An operation whose random inputs have outliers, and which is launched several times."""

    def __init__(self, context: Context, workload: Workload, *, seed: int = 0) -> None:
        super().__init__(context, workload, seed=seed)
        self.inputs = with_outliers(self.inputs, np.random.default_rng(seed))

    def verify_often(self, program: Program, config: Config, repeat: int) -> tuple[Verdict, bool]:
        """The worst of ``repeat`` launches on the same inputs, and whether all gave the same bits.

        A verdict that is not ok says how many of them were wrong.
        """
        seen: set[bytes] = set()
        verdicts: list[Verdict] = []
        for _ in range(repeat):
            bound = self.bind(program, config)
            try:
                verdicts.append(check(self.spec, self.workload, config, bound, self.reference))
                seen.add(self._bits(bound, config))
            finally:
                bound.release()
        wrong = [verdict for verdict in verdicts if not verdict.ok]
        if not wrong:
            return max(verdicts, key=lambda verdict: verdict.error), len(seen) == 1
        worst = max(wrong, key=lambda verdict: verdict.error)
        if len(wrong) == repeat:
            return worst, len(seen) == 1
        message = f"{len(wrong)} of {repeat} times wrong on the same inputs: {worst.message}"
        return Verdict(False, worst.error, message), False

    def _bits(self, bound: Bound, config: Config) -> bytes:
        arguments = self.spec.arguments(self.workload, config)
        names = [a.name for a in arguments if a.role in ("output", "inout")]
        return b"".join(bound.tensors[name].read().tobytes() for name in names)
