"""y += x: the residual stream of a decoder layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..elementwise import ElementwiseSpec
from ..texels import input_memory
from ..types import Argument, Array, Config, Workload


class AddSpec(ElementwiseSpec):
    """``y += x``; of both only ``x`` may be seen as texels, for ``y`` is written, too."""

    op = "add"
    file = "add/add.cl"
    example = "add d=576 m=1"

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        shape = (workload.size("m"), workload.size("d"))
        return (
            Argument("x", "input", "float32", shape, input_memory(config)),
            Argument("y", "inout", "float32", shape),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        shape = (workload.size("m"), workload.size("d"))
        return {name: rng.standard_normal(shape, dtype=np.float32) for name in ("x", "y")}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        return {"y": inputs["y"].astype(np.float64) + inputs["x"]}

    def tolerance(self, workload: Workload) -> float:
        return 1e-7

    def flops(self, workload: Workload) -> int:
        return workload.size("d") * workload.size("m")

    def bytes(self, workload: Workload) -> int:
        return 12 * workload.size("d") * workload.size("m")
