"""Causal attention of several tokens to the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from ..attention import AttentionSpec
from ..sizes import LOCAL_SIZES, WIDTHS, dividing, safe_items, too_many_items
from ..texels import texel_defines
from ..types import Argument, Config, DeviceLimits, Geometry, Value, Variant, Workload

#: Private bytes that a work-item may use where many of them share a compute unit's registers.
SHARED_PRIVATE_BYTES = 2048
#: Unrolled steps along the head times positions; compilers take many seconds for more.
UNROLLED = 128


class AttentionPrefillSpec(AttentionSpec):
    """Parameters: ``LX`` work-items to a group, ``V`` query rows to a work-item (one to a lane),
    ``T`` positions to a step, ``UD`` unrolling of the loops along the head."""

    op = "attention_prefill"
    file = "attention_prefill/attention_prefill.cl"
    example = "attention_prefill ctx=512 head_dim=64 heads=9 kv=f32 kv_heads=3 m=256"

    def rows(self, workload: Workload) -> int:
        """Query rows of one KV head: tokens times query heads that share it."""
        heads, kv_heads = workload.size("heads"), workload.size("kv_heads")
        return workload.size("m") * heads // kv_heads

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        return {
            "LX": LOCAL_SIZES,
            "V": WIDTHS,
            "T": (1, 2, 4, 8, 16),
            "UD": (1, workload.size("head_dim")),
        }

    def private_bytes(self, workload: Workload, config: Config) -> int:
        """A work-item's queries and accumulators."""
        return 8 * workload.size("head_dim") * config["V"]

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        private = self.private_bytes(workload, config)
        if config["LX"] > 1 and config["V"] > 1 and private > SHARED_PRIVATE_BYTES:
            return f"{private} > {SHARED_PRIVATE_BYTES} bytes of private memory to a work-item"
        if config["UD"] > 1 and config["UD"] * config["T"] > UNROLLED:
            return f"{config['UD']} x {config['T']} unrolled steps > {UNROLLED}"
        return too_many_items(config["LX"], -(-self.rows(workload) // config["V"]))

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        if limits.type == "cpu":
            rows = self.rows(workload)
            width = next((width for width in WIDTHS if width >= rows), WIDTHS[-1])
            return Config.of("buffer", LX=1, V=width, T=8, UD=1)
        head_dim = workload.size("head_dim")
        fitting = limits.local_memory // (8 * head_dim)
        items = safe_items(limits, min(64, self.rows(workload)))
        # Unrolled along the head, queries and accumulators stay in registers: twice as fast.
        steps = min(2, UNROLLED // head_dim, max(fitting, 1))
        if steps:
            return Config.of("buffer", LX=items if fitting else 1, V=1, T=steps, UD=head_dim)
        steps = 4 if fitting >= 4 else 1
        return Config.of("buffer", LX=items if fitting else 1, V=1, T=steps, UD=1)

    def local_memory(self, workload: Workload, config: Config) -> int:
        if config["LX"] == 1:
            return 0
        return 8 * config["T"] * workload.size("head_dim")

    def kernel(self, workload: Workload, config: Config) -> str:
        return "attention_prefill"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        head_dim = workload.size("head_dim")
        return {
            **self.head_defines(workload),
            **dict(config.params),
            **texel_defines(config),
            "W": max(dividing(WIDTHS, head_dim)),
            "SCALE": f"{1 / sqrt(head_dim)!r}f",
        }

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        items = -(-self.rows(workload) // config["V"])
        return Geometry.cover((items, workload.size("kv_heads")), (config["LX"], 1))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        return self.arguments_of(workload, config, (workload.size("m"),))
