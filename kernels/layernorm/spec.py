"""Layer normalisation: y = (x - mean) / sqrt(variance + eps) * w + b, row by row.

Ba, Kiros and Hinton, "Layer Normalization" (2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..sizes import LOCAL_SIZES, WIDTHS, safe_items, safe_width, too_many_items
from ..spec import KernelSpec
from ..texels import BUFFER_AND_TEXELS, input_memory, texel_defines, vector_widths
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload

#: Floats of a row that an item may keep in registers.
_MOST_HELD = 64


class LayernormSpec(KernelSpec):
    """Workload: sizes ``d`` (row length) and ``m`` (rows); tags ``eps`` and ``bias``.

    The variance is that of the whole row (divided by ``d``). It keeps its digits where the mean is
    far from zero: a mean of a thousand standard deviations costs none.

    Parameters: ``LX`` work-items to a row, ``V`` vector width, ``HOLD`` whether an item keeps its
    part of the row in registers (1) or reads it three times (0). The variant ``image`` reads ``x``,
    the weights and the bias as RGBA texels.
    """

    variants = BUFFER_AND_TEXELS

    op = "layernorm"
    file = "layernorm/layernorm.cl"
    example = "layernorm bias=yes d=768 eps=1e-06 m=197"
    example_model = "ViT-B/16"

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        return {"LX": LOCAL_SIZES, "V": vector_widths(variant, workload.size("d")), "HOLD": (0, 1)}

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        d = workload.size("d")
        held = -(-(d // config["V"]) // config["LX"]) * config["V"]
        if config["HOLD"] and held > _MOST_HELD:
            return f"registers {held} > {_MOST_HELD} floats of a row"
        return too_many_items(config["LX"], -(-d // config["V"]))

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        width = safe_width(limits, WIDTHS)
        useful = -(-workload.size("d") // width)
        return Config.of("buffer", LX=safe_items(limits, min(128, useful), 4), V=width, HOLD=0)

    def starts(self, workload: Workload, limits: DeviceLimits) -> tuple[Config, ...]:
        safe = self.safe(workload, limits)
        return safe, safe.replace(HOLD=1)

    def local_memory(self, workload: Workload, config: Config) -> int:
        return 4 * config["LX"]

    def kernel(self, workload: Workload, config: Config) -> str:
        return "layernorm"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        own: dict[str, Value] = {
            "LX": config["LX"],
            "V": config["V"],
            "HOLD": config["HOLD"],
            "D": workload.size("d"),
            "EPS": f"{float(workload.tag('eps'))!r}f",
        }
        if workload.tag("bias") == "yes":
            own["BIAS"] = 1
        return own | texel_defines(config)

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        return Geometry((config["LX"] * workload.size("m"),), (config["LX"],))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        d, m = workload.size("d"), workload.size("m")
        seen = input_memory(config)
        names = ("w", "b") if workload.tag("bias") == "yes" else ("w",)
        return (
            Argument("x", "input", "float32", (m, d), seen),
            *(Argument(name, "input", "float32", (d,), seen) for name in names),
            Argument("y", "output", "float32", (m, d)),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        """Rows of any scale, with means of up to a hundred standard deviations."""
        d, m = workload.size("d"), workload.size("m")
        scale, mean = np.exp(rng.normal(0, 1, (m, 1))), rng.choice([0.0, 3.0, -100.0], (m, 1))
        inputs = {
            "x": ((rng.standard_normal((m, d)) + mean) * scale).astype(np.float32),
            "w": rng.normal(1, 0.3, d).astype(np.float32),
        }
        if workload.tag("bias") == "yes":
            inputs["b"] = rng.standard_normal(d, dtype=np.float32)
        return inputs

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        x = inputs["x"].astype(np.float64)
        scale = np.sqrt(x.var(axis=1, keepdims=True) + float(workload.tag("eps")))
        y = (x - x.mean(axis=1, keepdims=True)) / scale * inputs["w"]
        return {"y": y + inputs.get("b", 0.0)}

    def tolerance(self, workload: Workload) -> float:
        return 5e-6

    def flops(self, workload: Workload) -> int:
        return 8 * workload.size("d") * workload.size("m")

    def bytes(self, workload: Workload) -> int:
        d, m = workload.size("d"), workload.size("m")
        return 4 * d * (2 * m + (2 if workload.tag("bias") == "yes" else 1))
