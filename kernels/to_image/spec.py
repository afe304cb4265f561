"""A conversion: the rows of a matrix, from its buffer into an image of RGBA texels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..images import as_image, image_shape, matrix_argument
from ..sizes import LOCAL_SIZES, safe_items, too_many_items
from ..spec import KernelSpec
from ..texels import IMAGE_BUFFERS
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload

#: The variant that reads the buffer as texels.
TEXELS = "texels"


class ToImageSpec(KernelSpec):
    """Workload: sizes ``k`` (row length) and ``m`` (rows).

    The image has a row for each row of the matrix, four columns to a texel, the last one filled up
    with zeros. It is launched where a chosen kernel reads activations from an image of their own.

    Parameters: ``LX`` work-items along a row, ``LY`` rows to a work-group, ``U`` texels to a
    work-item. The variant ``texels`` reads the buffer as RGBA texels, too.
    """

    variants = (
        Variant("image", "image", frozenset({"images"})),
        Variant(TEXELS, "image", frozenset({"images", IMAGE_BUFFERS})),
    )

    op = "to_image"
    file = "to_image/to_image.cl"
    example = "to_image k=576 m=256"

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        return {"LX": LOCAL_SIZES, "LY": (1, 4, 16), "U": (1, 2, 4, 8)}

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        if config.variant == TEXELS and workload.size("k") % 4:
            return f"rows of {workload.size('k')} don't begin with a texel each"
        if config["LX"] * config["LY"] > 256:
            return f"work-group {config['LX'] * config['LY']} > 256 work-items"
        if config["LY"] > 1 and config["LY"] >= 2 * workload.size("m"):
            return f"LY {config['LY']} for {workload.size('m')} rows"
        return too_many_items(config["LX"] * config["U"], self._texels(workload))

    def _texels(self, workload: Workload) -> int:
        """Texels to a row."""
        return -(-workload.size("k") // 4)

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        texels = self._texels(workload)
        unroll = max((u for u in (8, 4, 2) if u <= texels), default=1)
        unroll = unroll if limits.type == "cpu" else 1
        return Config.of("image", LX=safe_items(limits, min(64, texels)), LY=1, U=unroll)

    def kernel(self, workload: Workload, config: Config) -> str:
        return "to_image"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        own = {"K": workload.size("k"), "XM": self._form(config)}
        return {**dict(config.params), **own}

    def _form(self, config: Config) -> int:
        return 1 if config.variant == TEXELS else 0

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        pieces = -(-self._texels(workload) // config["U"])
        return Geometry.cover((pieces, workload.size("m")), (config["LX"], config["LY"]))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        m, k = workload.size("m"), workload.size("k")
        return (
            matrix_argument("x", m, k, self._form(config)),
            Argument("y", "output", "float32", image_shape(m, k), "image2d"),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        shape = (workload.size("m"), workload.size("k"))
        return {"x": rng.standard_normal(shape, dtype=np.float32)}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        return {"y": as_image(inputs["x"]).astype(np.float64)}

    def tolerance(self, workload: Workload) -> float:
        return 0.0

    def flops(self, workload: Workload) -> int:
        return 0

    def bytes(self, workload: Workload) -> int:
        m, k = workload.size("m"), workload.size("k")
        return 4 * m * (k + 4 * self._texels(workload))
