"""Rotary position embedding of queries and keys, and the step's write into the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..attention import CacheSpec
from ..sizes import LOCAL_SIZES, dividing, safe_items, safe_width, too_many_items
from ..texels import BUFFER_AND_TEXELS, input_memory, texel_defines
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload


class RopeSpec(CacheSpec):
    """Workload: beside those of a :class:`CacheSpec` the size ``rope_dim`` (at most ``head_dim``;
    values past it are not rotated) and the tag ``style``: ``half`` pairs value i with
    i + rope_dim / 2 (NeoX), ``interleaved`` pairs 2i with 2i + 1 (the first RoPE paper).

    With ``norm=yes`` each query and key head is first normalised over its ``head_dim`` values, as
    in the operation rmsnorm with the tag ``eps``, with the weights ``q_norm`` and ``k_norm``.

    ``table[position, i]`` is (cos, sin) of pair i's angle. Queries turn in place in ``qkv``; keys
    and values go to rows pos to pos + m - 1 of the caches.

    Parameters: ``LX`` work-items to a group, ``V`` pairs to a unit, ``S`` heads to a group. The
    variant ``image`` reads the table and the norms' weights as RGBA texels.
    """

    variants = BUFFER_AND_TEXELS

    op = "rope"
    file = "rope/rope.cl"
    example = "rope ctx=128 head_dim=64 heads=9 kv=f32 kv_heads=3 m=1 rope_dim=64 style=interleaved"

    def slots(self, workload: Workload) -> int:
        """Heads in a row of ``qkv``: query, key and value heads."""
        return workload.size("heads") + 2 * workload.size("kv_heads")

    def widths(self, workload: Workload) -> tuple[int, ...]:
        head_dim, rope_dim = workload.size("head_dim"), workload.size("rope_dim")
        return dividing((1, 2, 4), rope_dim // 2, (head_dim - rope_dim) // 2)

    def normed(self, workload: Workload) -> bool:
        return workload.tag("norm", "no") == "yes"

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        slots = self.slots(workload)
        sizes = {size for size in (1, 2, 3, 4, 6, 8, 16, 32) if size < slots}
        return {"LX": LOCAL_SIZES, "V": self.widths(workload), "S": (*sorted(sizes), slots)}

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        units = workload.size("head_dim") // (2 * config["V"])
        together = 1 if self.normed(workload) else config["S"]
        return too_many_items(config["LX"], units * together)

    def local_memory(self, workload: Workload, config: Config) -> int:
        return 4 * config["LX"] if self.normed(workload) else 0

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        width = safe_width(limits, self.widths(workload))
        units = workload.size("head_dim") // (2 * width)
        heads = self.slots(workload) if limits.type == "cpu" else 1
        return Config.of("buffer", LX=safe_items(limits, min(64, units)), V=width, S=heads)

    def kernel(self, workload: Workload, config: Config) -> str:
        return "rope"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        ways: dict[str, Value] = {}
        if workload.tag("style") == "interleaved":
            ways["INTERLEAVED"] = 1
        if self.normed(workload):
            ways |= {"NORM": 1, "EPS": f"{float(workload.tag('eps'))!r}f"}
        return {
            **self.head_defines(workload),
            **dict(config.params),
            **texel_defines(config),
            **ways,
            "ROPE_DIM": workload.size("rope_dim"),
            "W": 2 * config["V"],
        }

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        groups = -(-self.slots(workload) // config["S"])
        return Geometry((groups * config["LX"], workload.size("m")), (config["LX"], 1))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        ctx, m, dtype = workload.size("ctx"), workload.size("m"), self.kv_dtype(workload)
        cache = self.cache_shape(workload)
        norms = ("q_norm", "k_norm") if self.normed(workload) else ()
        seen, head_dim = input_memory(config), workload.size("head_dim")
        return (
            Argument("state", "state", "int32", (4,)),
            Argument("table", "input", "float32", (ctx, workload.size("rope_dim") // 2, 2), seen),
            *(Argument(name, "input", "float32", (head_dim,), seen) for name in norms),
            Argument("qkv", "inout", "float32", (m, self.row_length(workload))),
            Argument("k_cache", "inout", dtype, cache),
            Argument("v_cache", "inout", dtype, cache),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        cache, dtype = self.cache_shape(workload), self.kv_dtype(workload)
        pairs = workload.size("rope_dim") // 2
        angles = np.outer(np.arange(cache[0]), 10000.0 ** (-np.arange(pairs) / pairs))
        shape = workload.size("m"), self.row_length(workload)
        inputs = {
            "state": self.random_state(workload, rng),
            "table": np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32),
            "qkv": rng.standard_normal(shape, dtype=np.float32),
            "k_cache": rng.standard_normal(cache, dtype=np.float32).astype(dtype),
            "v_cache": rng.standard_normal(cache, dtype=np.float32).astype(dtype),
        }
        if self.normed(workload):
            # Heads of unlike lengths, which the norm has to even out.
            lengths = np.exp(rng.normal(0, 1, (shape[0], self.slots(workload), 1)))
            heads = inputs["qkv"].reshape(shape[0], self.slots(workload), -1)
            inputs["qkv"] = (heads * lengths).astype(np.float32).reshape(shape)
            for name in ("q_norm", "k_norm"):
                inputs[name] = rng.normal(1, 0.3, workload.size("head_dim")).astype(np.float32)
        return inputs

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        heads, kv_heads = workload.size("heads"), workload.size("kv_heads")
        head_dim, rope_dim = workload.size("head_dim"), workload.size("rope_dim")
        pos, m = (int(n) for n in inputs["state"][:2])
        values = inputs["qkv"].astype(np.float64).reshape(-1, self.slots(workload), head_dim)
        turns = inputs["table"][pos : pos + m, None].astype(np.float64)
        c, s = turns[..., 0], turns[..., 1]
        if workload.tag("style") == "interleaved":
            first, second = slice(0, rope_dim, 2), slice(1, rope_dim, 2)
        else:
            first, second = slice(0, rope_dim // 2), slice(rope_dim // 2, rope_dim)
        step = values[:m, : heads + kv_heads].copy()
        if self.normed(workload):
            squares = np.mean(step * step, axis=-1, keepdims=True)
            step /= np.sqrt(squares + float(workload.tag("eps")))
            step[:, :heads] *= inputs["q_norm"]
            step[:, heads:] *= inputs["k_norm"]
        a, b = step[..., first], step[..., second]
        turned = step.copy()
        turned[..., first], turned[..., second] = a * c - b * s, b * c + a * s

        qkv = values.copy()
        qkv[:m, :heads] = turned[:, :heads]
        k_cache, v_cache = (inputs[n].astype(np.float64) for n in ("k_cache", "v_cache"))
        k_cache[pos : pos + m] = turned[:, heads:]
        v_cache[pos : pos + m] = values[:m, heads + kv_heads :]
        return {"qkv": qkv.reshape(inputs["qkv"].shape), "k_cache": k_cache, "v_cache": v_cache}

    def tolerance(self, workload: Workload) -> float:
        """float16 rounds each value by up to 2^-11; over many, the relative L2 error is 2.1e-4."""
        exact = 5e-6 if self.normed(workload) else 2e-6
        return 5e-4 if workload.tag("kv") == "f16" else exact

    def flops(self, workload: Workload) -> int:
        heads = workload.size("heads") + workload.size("kv_heads")
        norm = 4 * workload.size("head_dim") if self.normed(workload) else 0
        return workload.size("m") * heads * (3 * workload.size("rope_dim") + norm)

    def bytes(self, workload: Workload) -> int:
        m, head_dim = workload.size("m"), workload.size("head_dim")
        read = self.row_length(workload) + workload.size("rope_dim")
        written = workload.size("heads") * head_dim
        return 4 * m * (read + written) + 2 * self.cache_bytes(workload, m)
