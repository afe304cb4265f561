"""Arithmetic roof: how fast a kernel can multiply and add in float32 registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..sizes import safe_items, safe_width
from ..spec import KernelSpec
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload

#: Fewest steps of a chain: with b <= 0.5 all starting values are forgotten by then.
LEAST_STEPS = 32


class RoofFmaSpec(KernelSpec):
    """Workload: size ``mops``, the number of 2^20 operations (2^19 multiply-adds).

    Parameters: ``LX`` work-items to a group, ``V`` vector width, ``A`` independent chains of a
    work-item, ``G`` work-groups. All are powers of two, so that every configuration does exactly
    the same number of operations.
    """

    op = "roof_fma"
    file = "roof_fma/roof_fma.cl"
    example = "roof_fma mops=200"

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        return {
            "LX": (1, 64, 128, 256),
            "V": (1, 4, 8, 16),
            "A": (1, 2, 4, 8, 16),
            "G": (2, 4, 16, 64, 256, 1024, 4096),
        }

    def steps(self, workload: Workload, config: Config) -> int:
        """Multiply-adds of one chain."""
        chains = config["G"] * config["LX"] * config["A"] * config["V"]
        return (workload.size("mops") << 19) // chains

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        if config["G"] < limits.compute_units:
            return f"{config['G']} work-groups for {limits.compute_units} compute units"
        if self.steps(workload, config) < LEAST_STEPS:
            return f"{self.steps(workload, config)} < {LEAST_STEPS} multiply-adds to a chain"
        if config["A"] * config["V"] > 128:
            return f"{config['A'] * config['V']} > 128 floats in a work-item's registers"
        return None

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        width = safe_width(limits, (1, 4, 8))
        groups = next((g for g in (4, 16, 64, 256, 1024) if g >= limits.compute_units), 4096)
        for items in (64, 1) if safe_items(limits, 64) == 64 else (1,):
            config = Config.of("buffer", LX=items, V=width, A=4, G=groups)
            if self.steps(workload, config) >= LEAST_STEPS:
                return config
        return Config.of("buffer", LX=1, V=1, A=1, G=groups)

    def kernel(self, workload: Workload, config: Config) -> str:
        return "roof_fma"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        chosen = {name: config[name] for name in ("LX", "V", "A")}
        return {**chosen, "STEPS": self.steps(workload, config)}

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        return Geometry((config["G"] * config["LX"],), (config["LX"],))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        return (
            Argument("bc", "input", "float32", (2,)),
            Argument("out", "output", "float32", (config["G"] * config["LX"],)),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        return {"bc": rng.uniform((0.25, 1.0), (0.5, 2.0)).astype(np.float32)}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Least and largest result of all work-items: both are the chains' fixed point."""
        b, c = inputs["bc"].astype(np.float64)
        return {"out": np.full(2, c / (1 - b))}

    def outputs(self, workload: Workload, raw: Mapping[str, Array]) -> dict[str, Array]:
        return {"out": np.array([raw["out"].min(), raw["out"].max()])}

    def tolerance(self, workload: Workload) -> float:
        return 2e-6

    def flops(self, workload: Workload) -> int:
        return workload.size("mops") << 20

    def bytes(self, workload: Workload) -> int:
        return 8
