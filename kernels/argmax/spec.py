"""Index of the largest of n values, with a check that they make sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..sizes import LOCAL_SIZES, WIDTHS, safe_items, safe_width, too_many_items
from ..spec import KernelSpec
from ..texels import BUFFER_AND_TEXELS, input_memory, texel_defines, vector_widths
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload

#: Bits of the status: a value is NaN or infinite; all values are equal.
NOT_FINITE, ALL_EQUAL = 1, 2


class ArgmaxSpec(KernelSpec):
    """Workload: size ``n``. ``out`` is (index, status).

    The lowest index wins a tie; where a value is not finite the index is 0. The single work-group
    has ``LX`` items that read vectors of ``V``; the variant ``image`` reads them as RGBA texels.
    """

    variants = BUFFER_AND_TEXELS

    op = "argmax"
    file = "argmax/argmax.cl"
    example = "argmax n=49152"

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        return {"LX": (*LOCAL_SIZES, 512, 1024), "V": vector_widths(variant)}

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        return too_many_items(config["LX"], -(-workload.size("n") // config["V"]))

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        width = safe_width(limits, WIDTHS)
        useful = -(-workload.size("n") // width)
        return Config.of("buffer", LX=safe_items(limits, min(256, useful), 8), V=width)

    def local_memory(self, workload: Workload, config: Config) -> int:
        return 8 * config["LX"]

    def kernel(self, workload: Workload, config: Config) -> str:
        return "argmax"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        return {**dict(config.params), **texel_defines(config), "N": workload.size("n")}

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        return Geometry((config["LX"],), (config["LX"],))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        return (
            Argument("x", "input", "float32", (workload.size("n"),), input_memory(config)),
            Argument("out", "output", "int32", (2,)),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        """Logits; every second time rounded so coarsely that the largest value has ties."""
        x = rng.normal(0, 3, workload.size("n")).astype(np.float32)
        return {"x": np.clip(np.round(x), -4, 4) if rng.random() < 0.5 else x}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        x = inputs["x"]
        finite = bool(np.isfinite(x).all())
        status = 0 if finite else NOT_FINITE
        if x.size > 1 and (x == x[0]).all():
            status |= ALL_EQUAL
        return {"out": np.array([np.argmax(x) if finite else 0, status], np.int32)}

    def tolerance(self, workload: Workload) -> float:
        return 0.0

    def flops(self, workload: Workload) -> int:
        return workload.size("n")

    def bytes(self, workload: Workload) -> int:
        return 4 * workload.size("n") + 8
