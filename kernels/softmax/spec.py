"""Softmax, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..sizes import LOCAL_SIZES, WIDTHS, safe_items, safe_width, too_many_items
from ..spec import KernelSpec
from ..texels import BUFFER_AND_TEXELS, input_memory, texel_defines, vector_widths
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload


class SoftmaxSpec(KernelSpec):
    """Workload: sizes ``n`` (row length) and ``m`` (rows).

    Parameters: ``LX`` work-items to a row, ``V`` vector width. The variant ``image`` reads ``x`` as
    RGBA texels.
    """

    variants = BUFFER_AND_TEXELS

    op = "softmax"
    file = "softmax/softmax.cl"
    example = "softmax m=1 n=49152"

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        widths = vector_widths(variant, workload.size("n"))
        return {"LX": (*LOCAL_SIZES, 512, 1024), "V": widths}

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        return too_many_items(config["LX"], -(-workload.size("n") // config["V"]))

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        width = safe_width(limits, WIDTHS)
        useful = -(-workload.size("n") // width)
        return Config.of("buffer", LX=safe_items(limits, min(256, useful), 4), V=width)

    def local_memory(self, workload: Workload, config: Config) -> int:
        return 4 * config["LX"]

    def kernel(self, workload: Workload, config: Config) -> str:
        return "softmax"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        return {**dict(config.params), **texel_defines(config), "N": workload.size("n")}

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        return Geometry((config["LX"] * workload.size("m"),), (config["LX"],))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        shape = (workload.size("m"), workload.size("n"))
        return (
            Argument("x", "input", "float32", shape, input_memory(config)),
            Argument("y", "output", "float32", shape),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        """Logits whose naive exponentials overflow float32 in about every second row."""
        n, m = workload.size("n"), workload.size("m")
        shift = rng.choice([0.0, 120.0], (m, 1))
        return {"x": (rng.normal(0, 3, (m, n)) + shift).astype(np.float32)}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        x = inputs["x"].astype(np.float64)
        e = np.exp(x - x.max(axis=1, keepdims=True))
        return {"y": e / e.sum(axis=1, keepdims=True)}

    def tolerance(self, workload: Workload) -> float:
        return 5e-6

    def flops(self, workload: Workload) -> int:
        return 4 * workload.size("n") * workload.size("m")

    def bytes(self, workload: Workload) -> int:
        return 8 * workload.size("n") * workload.size("m")
