"""What the operations on the KV cache have in common: shapes, random inputs, reference.

A cache is ``[ctx, kv_heads, head_dim]`` of float16 or float32; a token's row of ``qkv`` holds the
query heads, then the key heads, then the value heads. ``state`` is int32[4]: ``pos``, the number of
positions in the cache before this step, and ``m``, the number of tokens in this step. Sizes ``m``
and ``ctx`` of a workload are upper bounds: a kernel takes the real ones from ``state``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from .spec import KernelSpec
from .texels import BUFFER_AND_TEXELS, input_memory
from .types import Argument, Array, Config, Value, Workload

#: NumPy dtypes of a cache, by the workload's tag ``kv``.
KV_DTYPES = {"f16": "float16", "f32": "float32"}


class CacheSpec(KernelSpec):
    """An operation on the KV cache.

    Workload: sizes ``heads``, ``kv_heads``, ``head_dim``, ``ctx`` and, but for a single token,
    ``m``; tag ``kv`` (f16, f32).
    """

    dtypes = MappingProxyType({"kv": tuple(KV_DTYPES)})

    def tokens(self, workload: Workload) -> int:
        return workload.size("m")

    def cache_shape(self, workload: Workload) -> tuple[int, int, int]:
        return workload.size("ctx"), workload.size("kv_heads"), workload.size("head_dim")

    def kv_dtype(self, workload: Workload) -> str:
        return KV_DTYPES[workload.tag("kv")]

    def row_length(self, workload: Workload) -> int:
        """Values in a token's row of ``qkv``."""
        slots = workload.size("heads") + 2 * workload.size("kv_heads")
        return slots * workload.size("head_dim")

    def head_defines(self, workload: Workload) -> dict[str, Value]:
        return {
            "HEADS": workload.size("heads"),
            "KV_HEADS": workload.size("kv_heads"),
            "HEAD_DIM": workload.size("head_dim"),
            f"KV_{workload.tag('kv').upper()}": 1,
        }

    def random_state(self, workload: Workload, rng: np.random.Generator) -> Array:
        """A bucket that is full up to a few positions.

        So a measurement costs what :meth:`flops` and :meth:`bytes` say, and the last position
        still falls anywhere in a kernel's last tile.
        """
        ctx, m = workload.size("ctx"), self.tokens(workload)
        free = rng.integers(0, min(8, ctx // 16, ctx - m) + 1)
        return np.array([ctx - m - free, m, 0, 0], np.int32)

    def cache_bytes(self, workload: Workload, positions: int) -> int:
        """Bytes of so many positions of one cache."""
        _, kv_heads, head_dim = self.cache_shape(workload)
        return positions * kv_heads * head_dim * np.dtype(self.kv_dtype(workload)).itemsize


class AttentionSpec(CacheSpec):
    """Softmax attention with grouped queries and a causal mask, scale 1 / sqrt(head_dim).

    Token ``i`` is position ``pos + i``; its own and the step's other keys and values are in the
    cache already. Token ``i`` attends to positions 0 to ``pos + i``. The variant ``image`` reads
    ``qkv`` and the caches as RGBA texels, of float16 where the caches are.
    """

    variants = BUFFER_AND_TEXELS

    def arguments_of(
        self, workload: Workload, config: Config, lead: tuple[int, ...]
    ) -> tuple[Argument, ...]:
        """The arguments; ``lead`` is the leading shape of ``qkv`` and ``out``."""
        seen = input_memory(config)
        cache, dtype = self.cache_shape(workload), self.kv_dtype(workload)
        width = workload.size("heads") * workload.size("head_dim")
        return (
            Argument("state", "state", "int32", (4,)),
            Argument("qkv", "input", "float32", (*lead, self.row_length(workload)), seen),
            Argument("k_cache", "input", dtype, cache, seen, streams=True),
            Argument("v_cache", "input", dtype, cache, seen, streams=True),
            Argument("out", "output", "float32", (*lead, width)),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        """Scores with a standard deviation of 2 and a few outliers.

        Positions past the step are NaN: no kernel may let them count.
        """
        shape, dtype = self.cache_shape(workload), self.kv_dtype(workload)
        state = self.random_state(workload, rng)
        qkv = 2 * rng.standard_normal(
            (self.tokens(workload), self.row_length(workload)), dtype=np.float32
        )
        k = rng.standard_normal(shape, dtype=np.float32)
        k[rng.random(shape[0]) < 0.01] *= 3
        v = rng.standard_normal(shape, dtype=np.float32)
        k[state[0] + state[1] :] = v[state[0] + state[1] :] = np.nan
        caches = {"k_cache": k.astype(dtype), "v_cache": v.astype(dtype)}
        return {"state": state, "qkv": qkv, **caches}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        heads, head_dim = workload.size("heads"), workload.size("head_dim")
        pos, m = (int(n) for n in inputs["state"][:2])
        group = heads // workload.size("kv_heads")
        q = inputs["qkv"].reshape(-1, self.row_length(workload)).astype(np.float64)
        hidden = np.arange(pos + m) > pos + np.arange(m)[:, None]
        out = np.empty((m, heads, head_dim))
        for head in range(heads):
            k, v = (
                inputs[name][: pos + m, head // group].astype(np.float64)
                for name in ("k_cache", "v_cache")
            )
            scores = q[:m, head * head_dim : (head + 1) * head_dim] @ k.T / np.sqrt(head_dim)
            scores[hidden] = -np.inf
            e = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = e @ v / e.sum(axis=1, keepdims=True)
        return {"out": out.reshape(m, heads * head_dim)}

    def attended(self, workload: Workload) -> int:
        """Pairs of a token and a position that it attends to, when the bucket is full."""
        ctx, m = workload.size("ctx"), self.tokens(workload)
        return m * (ctx - m) + m * (m + 1) // 2

    def flops(self, workload: Workload) -> int:
        """A score and its share of the output: two multiply-adds for each value of a head."""
        return 4 * workload.size("heads") * workload.size("head_dim") * self.attended(workload)

    def bytes(self, workload: Workload) -> int:
        width = workload.size("heads") * workload.size("head_dim")
        vectors = 8 * self.tokens(workload) * width
        return vectors + 2 * self.cache_bytes(workload, workload.size("ctx"))
