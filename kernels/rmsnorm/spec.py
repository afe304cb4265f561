"""RMS normalisation: y = x / sqrt(mean(x^2) + eps) * w, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..sizes import LOCAL_SIZES, WIDTHS, safe_items, safe_width, too_many_items
from ..spec import KernelSpec
from ..texels import BUFFER_AND_TEXELS, input_memory, texel_defines, vector_widths
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload


class RmsnormSpec(KernelSpec):
    """Workload: sizes ``d`` (row length) and ``m`` (rows); tag ``eps``.

    Parameters: ``LX`` work-items to a row, ``V`` vector width. The variant ``image`` reads ``x``
    and the weights as RGBA texels.
    """

    variants = BUFFER_AND_TEXELS

    op = "rmsnorm"
    file = "rmsnorm/rmsnorm.cl"
    example = "rmsnorm d=576 eps=9.99999975e-06 m=1"

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        return {"LX": LOCAL_SIZES, "V": vector_widths(variant, workload.size("d"))}

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        return too_many_items(config["LX"], -(-workload.size("d") // config["V"]))

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        width = safe_width(limits, WIDTHS)
        useful = -(-workload.size("d") // width)
        return Config.of("buffer", LX=safe_items(limits, min(128, useful), 4), V=width)

    def local_memory(self, workload: Workload, config: Config) -> int:
        return 4 * config["LX"]

    def kernel(self, workload: Workload, config: Config) -> str:
        return "rmsnorm"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        eps = f"{float(workload.tag('eps'))!r}f"
        own: dict[str, Value] = {
            "LX": config["LX"],
            "V": config["V"],
            "D": workload.size("d"),
            "EPS": eps,
        }
        return own | texel_defines(config)

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        return Geometry((config["LX"] * workload.size("m"),), (config["LX"],))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        d, m = workload.size("d"), workload.size("m")
        return (
            Argument("x", "input", "float32", (m, d), input_memory(config)),
            Argument("w", "input", "float32", (d,), input_memory(config)),
            Argument("y", "output", "float32", (m, d)),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        d, m = workload.size("d"), workload.size("m")
        scale = np.exp(rng.normal(0, 1, (m, 1)))
        return {
            "x": (rng.standard_normal((m, d)) * scale).astype(np.float32),
            "w": rng.normal(1, 0.3, d).astype(np.float32),
        }

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        x = inputs["x"].astype(np.float64)
        mean = np.mean(x * x, axis=1, keepdims=True)
        return {"y": x / np.sqrt(mean + float(workload.tag("eps"))) * inputs["w"]}

    def tolerance(self, workload: Workload) -> float:
        return 5e-6

    def flops(self, workload: Workload) -> int:
        return 4 * workload.size("d") * workload.size("m")

    def bytes(self, workload: Workload) -> int:
        return 4 * workload.size("d") * (2 * workload.size("m") + 1)
