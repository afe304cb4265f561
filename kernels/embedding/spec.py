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

    Of a piece of a table (``of``) only the tokens whose rows it holds get theirs.

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
            *self.piece_argument(workload),
            Argument("y", "inout" if self.is_piece(workload) else "output", "float32", (m, k)),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        n, k, m = workload.size("n"), workload.size("k"), workload.size("m")
        inputs: dict[str, Any] = {"w": Matrix.random(workload.tag("w"), n, k, rng)}
        tokens = rng.integers(0, self.whole(workload), m, dtype=np.int32)
        if not self.is_piece(workload):
            return inputs | {"tokens": tokens}
        inputs |= self.piece_input(workload, rng)
        tokens[0] = inputs["piece"][0] + rng.integers(n)  # one at least is its own
        y = rng.standard_normal((m, k), dtype=np.float32)
        return inputs | {"tokens": tokens, "y": y}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        table: Matrix = inputs["w"]
        first = int(inputs["piece"][0]) if self.is_piece(workload) else 0
        y = np.zeros((workload.size("m"), workload.size("k")))
        if self.is_piece(workload):
            y = inputs["y"].astype(np.float64)
        for t, token in enumerate(inputs["tokens"] - first):
            if 0 <= token < table.rows:
                y[t] = table.slice(token, token + 1).dequantise()[0]
        return {"y": y}

    def tolerance(self, workload: Workload) -> float:
        return 1e-6  # one multiply-add

    def flops(self, workload: Workload) -> int:
        return 2 * workload.size("k") * workload.size("m")

    def bytes(self, workload: Workload) -> int:
        n = workload.size("n")
        # Of a piece: its share of the tokens.
        tokens = -(-workload.size("m") * n // self.whole(workload))
        return (self.weight_bytes(workload) // n + 4 * workload.size("k")) * tokens
