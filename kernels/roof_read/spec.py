"""Read bandwidth roof: how fast a kernel can sum numbers that lie in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..sizes import WIDTHS, safe_items, safe_width
from ..spec import KernelSpec
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload


class RoofReadSpec(KernelSpec):
    """Workload: size ``mb``, the MiB to read. The best time of it gives the roof.

    Parameters: ``LX`` work-items to a group, ``V`` vector width, ``A`` loads in flight, ``G``
    work-groups, each with a contiguous share.
    """

    op = "roof_read"
    file = "roof_read/roof_read.cl"
    example = "roof_read mb=256"

    def floats(self, workload: Workload) -> int:
        return workload.size("mb") << 18

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        return {
            "LX": (1, 64, 128, 256),
            "V": (4, 8, 16),
            "A": (1, 2, 4, 8),
            "G": (2, 4, 8, 16, 64, 256, 1024, 4096),
        }

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        if config["G"] < limits.compute_units:
            return f"{config['G']} work-groups for {limits.compute_units} compute units"
        steps = config["G"] * config["LX"] * config["V"] * config["A"]
        if steps > self.floats(workload):
            return f"{steps} floats to a step > {self.floats(workload)}"
        return None

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        width = safe_width(limits, WIDTHS)
        groups = next((g for g in (16, 64, 256, 1024) if g >= limits.compute_units), 4096)
        for items in (64, 1) if safe_items(limits, 64) == 64 else (1,):
            config = Config.of("buffer", LX=items, V=width, A=4, G=groups)
            if self.check(workload, config, limits) is None:
                break
        return config

    def kernel(self, workload: Workload, config: Config) -> str:
        return "roof_read"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        vectors = self.floats(workload) // config["V"]
        return {**{name: config[name] for name in ("LX", "V", "A")}, "N": vectors}

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        return Geometry((config["G"] * config["LX"],), (config["LX"],))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        return (
            Argument("x", "input", "float32", (self.floats(workload),), streams=True),
            Argument("out", "output", "float32", (config["G"] * config["LX"],)),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        """Small integers, whose float32 sums are exact up to 2^24."""
        n = self.floats(workload)
        return {"x": rng.integers(0, 4, n, dtype=np.uint8).astype(np.float32)}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        return {"out": np.array([inputs["x"].sum(dtype=np.float64)])}

    def outputs(self, workload: Workload, raw: Mapping[str, Array]) -> dict[str, Array]:
        """The sum of what the work-items summed."""
        return {"out": np.array([raw["out"].sum(dtype=np.float64)])}

    def tolerance(self, workload: Workload) -> float:
        """Only a work-item that sums past 2^24 rounds at all."""
        return 1e-6

    def flops(self, workload: Workload) -> int:
        return self.floats(workload)

    def bytes(self, workload: Workload) -> int:
        return 4 * self.floats(workload)
