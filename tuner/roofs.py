"""The device's measured roofs: how fast it reads memory and does float32 arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..cache.store import Store
from ..kernels import SPECS
from ..kernels.types import DeviceLimits, Workload
from ..kernels.uses import Use
from .tasks import Roof, Task

READ_FACT, FLOPS_FACT = "roof.read_bytes_per_s", "roof.flops_per_s"
READ = Workload.of("roof_read", mb=256)
FLOPS = Workload.of("roof_fma", mops=200)
ROOF_USES = (Use(READ, "decode", 0, 0), Use(FLOPS, "decode", 0, 0))


def fitted(use: Use, limits: DeviceLimits) -> Use:
    """``use``, if it reads memory with no more than one allocation holds."""
    most = max(limits.max_alloc >> 20, 1)
    if use.workload.op != READ.op or use.workload.size("mb") <= most:
        return use
    return replace(use, workload=use.workload.replace(mb=1 << most.bit_length() - 1))


def read_roof(store: Store, driver: str) -> Roof:
    """The roofs on file."""
    return Roof(_number(store.fact(READ_FACT, driver=driver)),
                _number(store.fact(FLOPS_FACT, driver=driver)))  # fmt: skip


def write_roof(store: Store, driver: str, tasks: Sequence[Task]) -> Roof:
    """Work the roofs out from their tasks' best times and keep them."""
    for task in tasks:
        best = task.best_time()
        if best is None:
            continue
        spec, workload = SPECS[task.workload.op], task.workload
        if workload.op == READ.op:
            store.set_fact(READ_FACT, spec.bytes(workload) / best, driver=driver)
        else:
            store.set_fact(FLOPS_FACT, spec.flops(workload) / best, driver=driver)
    return read_roof(store, driver)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value > 0 else None
