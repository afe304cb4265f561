"""What ``fuse=qkv`` adds to a GEMV: its rows become queries, keys and values of one token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..attention import KV_DTYPES
from ..types import Argument, Array, Value, Workload

#: Positions in the caches of a check: only the token's own row is touched, whatever there are.
POSITIONS = 8


def slots(workload: Workload) -> tuple[int, int, int]:
    """Query, key and value heads; together they are the rows of the weight."""
    kv_heads = workload.size("kv_heads")
    return workload.size("heads"), kv_heads, kv_heads


def queries(workload: Workload) -> int:
    return workload.size("heads") * workload.size("head_dim")


def defines(workload: Workload) -> dict[str, Value]:
    sizes = ("heads", "kv_heads", "head_dim", "rope_dim")
    found: dict[str, Value] = {name.upper(): workload.size(name) for name in sizes}
    return found | {f"KV_{workload.tag('kv').upper()}": 1}


def arguments(workload: Workload) -> tuple[Argument, ...]:
    """The arguments behind y: the table of angles and the caches."""
    dtype = KV_DTYPES[workload.tag("kv")]
    cache = (POSITIONS, workload.size("kv_heads"), workload.size("head_dim"))
    return (
        Argument("table", "input", "float32", (POSITIONS, workload.size("rope_dim") // 2, 2)),
        Argument("k_cache", "inout", dtype, cache),
        Argument("v_cache", "inout", dtype, cache),
    )


def inputs(workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
    table, k_cache, v_cache = arguments(workload)
    angles = rng.uniform(0, 2 * np.pi, table.shape[:2])
    return {
        "state": np.array([rng.integers(POSITIONS), 1, 0, 0], np.int32),
        "table": np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32),
        "k_cache": rng.standard_normal(k_cache.shape).astype(k_cache.dtype),
        "v_cache": rng.standard_normal(v_cache.shape).astype(v_cache.dtype),
    }


def reference(workload: Workload, y: Array, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Queries, and both caches with the token's row, from the product ``y [1, n]`` (float64)."""
    heads, kv_heads, _ = slots(workload)
    pos, turning = int(inputs["state"][0]), heads + kv_heads
    rows = y.reshape(-1, workload.size("head_dim")).copy()
    pairs = rows[:turning, : workload.size("rope_dim")].reshape(turning, -1, 2)
    c, s = np.moveaxis(inputs["table"][pos].astype(np.float64), -1, 0)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = np.stack([a * c - b * s, b * c + a * s], axis=-1)
    rows[:turning, : workload.size("rope_dim")] = turned.reshape(turning, -1)
    k_cache, v_cache = (inputs[name].astype(np.float64) for name in ("k_cache", "v_cache"))
    k_cache[pos], v_cache[pos] = rows[heads:turning], rows[turning:]
    return {"y": rows[:heads].reshape(1, -1), "k_cache": k_cache, "v_cache": v_cache}


def bytes(workload: Workload) -> int:
    """Bytes of the rows of the caches that are written, less what y would have taken."""
    kv = 2 * workload.size("kv_heads") * workload.size("head_dim")
    return kv * (np.dtype(KV_DTYPES[workload.tag("kv")]).itemsize - 4)
