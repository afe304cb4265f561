"""Random workloads of the operations without weights, most of them of sizes that divide nothing."""

from __future__ import annotations

import numpy as np

from clkiln.kernels.types import Workload


def random_workload(op: str, rng: np.random.Generator) -> Workload:
    """A small one: hundreds of elements to a row, up to 150 positions."""
    n, m = int(rng.integers(1, 700)), int(rng.integers(1, 6))
    match op:
        case "attention_decode" | "attention_prefill":
            return _attention(op, rng)
        case "rope":
            return _rope(rng)
        case "add":
            return Workload.of(op, d=n, m=m)
        case "rmsnorm":
            return Workload.of(op, d=n, m=m, eps=str(rng.choice(["1e-05", "1e-06"])))
        case "softmax":
            return Workload.of(op, n=n, m=m)
        case "argmax":
            return Workload.of(op, n=n)
        case "gelu":
            bias, form = str(rng.choice(["yes", "no"])), str(rng.choice(["erf", "tanh"]))
            return Workload.of(op, d=n, m=m, bias=bias, form=form)
        case "layernorm":
            bias, eps = str(rng.choice(["yes", "no"])), str(rng.choice(["1e-05", "1e-12"]))
            return Workload.of(op, d=n, m=m, bias=bias, eps=eps)
    raise ValueError(f"no random workloads of {op}")


def _attention(op: str, rng: np.random.Generator) -> Workload:
    kv_heads = int(rng.integers(1, 4))
    ctx = int(rng.integers(1, 150))
    workload = Workload.of(
        op,
        heads=kv_heads * int(rng.integers(1, 5)),
        kv_heads=kv_heads,
        head_dim=int(rng.choice([2, 5, 8, 20, 48, 64, 80])),
        kv=str(rng.choice(["f16", "f32"])),
        ctx=ctx,
    )
    if op == "attention_decode":
        return workload
    return workload.replace(m=int(rng.integers(1, min(ctx, 40) + 1)))


def _rope(rng: np.random.Generator) -> Workload:
    kv_heads = int(rng.integers(1, 4))
    head_dim = int(rng.choice([2, 8, 20, 48, 64, 80]))
    rope_dim = head_dim if rng.random() < 0.6 else max(2, head_dim // 4 * 2)
    ctx = int(rng.integers(1, 60))
    norm = {"norm": "yes", "eps": str(rng.choice(["1e-06", "1e-05"]))} if rng.random() < 0.5 else {}
    return Workload.of(
        "rope",
        **norm,
        heads=kv_heads * int(rng.integers(1, 4)),
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_dim=rope_dim,
        style=str(rng.choice(["half", "interleaved"])),
        kv=str(rng.choice(["f16", "f32"])),
        ctx=ctx,
        m=int(rng.integers(1, min(ctx, 9) + 1)),
    )
