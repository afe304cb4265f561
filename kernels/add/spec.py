"""y += x: the residual stream of a decoder layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..sizes import LOCAL_SIZES, WIDTHS, safe_items, safe_width, too_many_items
from ..texels import BUFFER_AND_TEXELS, input_memory, texel_defines, vector_widths
from ..types import (
    Argument,
    Array,
    Config,
    DeviceLimits,
    Geometry,
    KernelSpec,
    Value,
    Variant,
    Workload,
)


class AddSpec(KernelSpec):
    """Workload: sizes ``d`` (row length) and ``m`` (rows).

    Parameters: ``LX`` work-items to a group along the row, ``V`` vector width, ``U`` vectors to a
    work-item. The variant ``image`` reads ``x`` as RGBA texels.
    """

    variants = BUFFER_AND_TEXELS

    op = "add"
    file = "add/add.cl"
    example = "add d=576 m=1"

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        widths = vector_widths(variant, workload.size("d"))
        return {"LX": LOCAL_SIZES, "V": widths, "U": (1, 2, 4, 8, 16)}

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        vectors = -(-workload.size("d") // config["V"])
        return too_many_items(config["LX"] * config["U"], vectors)

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        width = safe_width(limits, WIDTHS)
        vectors = -(-workload.size("d") // width)
        items = safe_items(limits, min(64, vectors))
        unroll = 16 if limits.type == "cpu" and vectors > 8 else 1
        return Config.of("buffer", LX=items, V=width, U=unroll)

    def kernel(self, workload: Workload, config: Config) -> str:
        return "add"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        return {**dict(config.params), **texel_defines(config), "D": workload.size("d")}

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        pieces = -(-workload.size("d") // (config["V"] * config["U"]))
        return Geometry.cover((pieces, workload.size("m")), (config["LX"], 1))

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
