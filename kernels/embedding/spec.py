"""Embedding look-up: the rows of the table that the tokens name, decoded to float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..linear import WeightSpec
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload
from ..weights import Matrix


class EmbeddingSpec(WeightSpec):
    """Workload ``embedding k m n w``: ``m`` tokens, a table of ``n`` rows of ``k`` columns.

    It reads the table in whatever layout the output head wants, because the two are often one
    tensor: a look-up costs nothing beside a step.

    Parameters beside those of the layout: ``LX`` column groups to a work-group, ``V`` columns to a
    work-item.
    """

    op = "embedding"
    file = "embedding/embedding.cl"
    example = "embedding k=576 m=1 n=49152 w=q8_0"

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        return {
            **self.layout_parameters(workload, variant),
            "LX": (1, 4, 16, 64),
            "V": (1, 4, 16, 64),
        }

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        span = config["LX"] * config["V"]
        if span > 1 and span >= 2 * workload.size("k"):
            return f"{span} columns to a work-group for {workload.size('k')}"
        return None

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        variant, values = self.layout_values(workload, limits, layout)
        for size in (64, 16, 4):
            config = Config.of(variant, **values, LX=size, V=1)
            if limits.type != "cpu" and self.check(workload, config, limits) is None:
                return config
        return Config.of(variant, **values, LX=1, V=64 if workload.size("k") > 32 else 1)

    def kernel(self, workload: Workload, config: Config) -> str:
        return "embedding"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        own = {"LX": config["LX"], "V": config["V"]}
        return self.weight_defines(workload, config) | own

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        columns = -(-workload.size("k") // config["V"])
        return Geometry.cover((columns, workload.size("m")), (config["LX"], 1))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        m, k = workload.size("m"), workload.size("k")
        return (
            *self.weight_arguments(workload, config),
            Argument("tokens", "input", "int32", (m,)),
            Argument("y", "output", "float32", (m, k)),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        n, k = workload.size("n"), workload.size("k")
        tokens = rng.integers(0, n, workload.size("m"), dtype=np.int32)
        return {"w": Matrix.random(workload.tag("w"), n, k, rng), "tokens": tokens}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        table: Matrix = inputs["w"]
        rows = [table.slice(t, t + 1).dequantise()[0] for t in inputs["tokens"]]
        return {"y": np.stack(rows).astype(np.float64)}

    def tolerance(self, workload: Workload) -> float:
        return 1e-6  # one multiply-add

    def flops(self, workload: Workload) -> int:
        return 2 * workload.size("k") * workload.size("m")

    def bytes(self, workload: Workload) -> int:
        rows = self.weight_bytes(workload) // workload.size("n")
        return (rows + 4 * workload.size("k")) * workload.size("m")
