"""Attention of one token to the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from ..attention import AttentionSpec
from ..sizes import LOCAL_SIZES, WIDTHS, dividing, safe_items, safe_width, too_many_items
from ..texels import texel_defines, vector_widths
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload


class AttentionDecodeSpec(AttentionSpec):
    """Parameters: ``LX`` work-items that share the positions, ``V`` vector width along the head,
    ``T`` positions to a step, ``G`` query heads to a work-group (of one KV head)."""

    op = "attention_decode"
    file = "attention_decode/attention_decode.cl"
    example = "attention_decode ctx=512 head_dim=64 heads=9 kv=f32 kv_heads=3"

    def tokens(self, workload: Workload) -> int:
        return 1

    def shares(self, workload: Workload) -> tuple[int, ...]:
        """Numbers of query heads that can share the loads of their KV head."""
        return dividing(range(1, 9), workload.size("heads") // workload.size("kv_heads"))

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        head_dim = workload.size("head_dim")
        return {
            "LX": LOCAL_SIZES,
            "V": dividing(vector_widths(variant, head_dim), head_dim),
            "T": (1, 2, 4, 8, 16),
            "G": self.shares(workload),
        }

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        return too_many_items(config["LX"], -(-workload.size("ctx") // config["T"]))

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        width = safe_width(limits, dividing(WIDTHS, workload.size("head_dim")))
        if limits.type == "cpu":
            most = max(workload.size("heads") // limits.compute_units, 1)
            share = max(n for n in self.shares(workload) if n <= most)
            return Config.of("buffer", LX=1, V=width, T=8, G=share)
        memory = 4 + 2 * workload.size("head_dim")
        items = safe_items(limits, min(64, workload.size("ctx")), memory)
        return Config.of("buffer", LX=items, V=width, T=1, G=1)

    def local_memory(self, workload: Workload, config: Config) -> int:
        items = config["LX"]
        return 4 * items + 4 * (items // 2) * workload.size("head_dim")

    def kernel(self, workload: Workload, config: Config) -> str:
        return "attention_decode"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        scale = f"{1 / sqrt(workload.size('head_dim'))!r}f"
        own = {**self.head_defines(workload), **dict(config.params), "SCALE": scale}
        return own | texel_defines(config)

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        groups = workload.size("heads") // config["G"]
        return Geometry((groups * config["LX"],), (config["LX"],))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        return self.arguments_of(workload, config, ())

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        inputs = super().inputs(workload, rng)
        return {**inputs, "qkv": inputs["qkv"][0]}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        return {"out": super().reference(workload, inputs)["out"][0]}
