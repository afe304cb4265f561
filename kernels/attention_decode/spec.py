"""Attention of one token to the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from ..attention import AttentionSpec
from ..sizes import LOCAL_SIZES, WIDTHS, dividing, safe_items, safe_width, too_many_items
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload


class AttentionDecodeSpec(AttentionSpec):
    """Parameters: ``LX`` work-items that share the positions, ``V`` vector width along the head,
    ``T`` positions to a step, ``G`` query heads to a work-group (of one KV head)."""

    op = "attention_decode"
    file = "attention_decode/attention_decode.cl"

    def tokens(self, workload: Workload) -> int:
        return 1

    def group(self, workload: Workload) -> int:
        """Query heads to a KV head."""
        return workload.size("heads") // workload.size("kv_heads")

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        return {
            "LX": LOCAL_SIZES,
            "V": dividing(WIDTHS, workload.size("head_dim")),
            "T": (1, 2, 4, 8, 16),
            "G": dividing((1, 2, 3, 4, 6, 7, 8), self.group(workload)),
        }

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        return too_many_items(config["LX"], -(-workload.size("ctx") // config["T"]))

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        width = safe_width(limits, dividing(WIDTHS, workload.size("head_dim")))
        cpu = limits.type == "cpu"
        steps = 8 if cpu else 1
        memory = 4 + 2 * workload.size("head_dim")
        useful = min(64, -(-workload.size("ctx") // steps))
        return Config.of("buffer", LX=safe_items(limits, useful, memory), V=width, T=steps, G=1)

    def local_memory(self, workload: Workload, config: Config) -> int:
        items = config["LX"]
        return 4 * items + 4 * (items // 2) * workload.size("head_dim")

    def kernel(self, workload: Workload, config: Config) -> str:
        return "attention_decode"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        scale = f"{1 / sqrt(workload.size('head_dim'))!r}f"
        return {**self.head_defines(workload), **dict(config.params), "SCALE": scale}

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        groups = workload.size("heads") // config["G"]
        return Geometry((groups * config["LX"],), (config["LX"],))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        return self.arguments_of(workload, ())

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        inputs = super().inputs(workload, rng)
        return {**inputs, "qkv": inputs["qkv"][0]}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        return {"out": super().reference(workload, inputs)["out"][0]}
