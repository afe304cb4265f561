"""Every variant of every operation on the smallest device: right, or it says what it needs.

A source that needs more than it declares does not build here, one that reads images without a
sampler among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from clk_cases import TINY
from clk_pocl import find_pocl
from clkiln.harness.operation import Operation, label_of
from clkiln.kernels import SPECS
from clkiln.kernels.types import Workload
from clkiln.runtime.context import Context
from clkiln.runtime.device import Device
from clkiln.runtime.limits import read_limits
from clkiln.runtime.pretend import limited
from clkiln.runtime.program import ProgramLoader


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def context(request: pytest.FixtureRequest) -> Iterator[Context]:
    """PoCL as a small device of either type: each has variants of its own."""
    device = limited(find_pocl("debian"), read_limits(["small"]))
    with Context(Device(replace(device.info, type=request.param), device.handle)) as context:
        yield context


def cases() -> Iterator[object]:
    """One workload of each operation; all others are long."""
    for texts in TINY.values():
        for place, text in enumerate(texts):
            yield pytest.param(text, marks=pytest.mark.long if place else ())


@pytest.mark.parametrize("text", list(cases()))
def test_what_may_run_on_the_smallest_device_is_right(context: Context, text: str) -> None:
    workload = Workload.parse(text)
    spec, rng = SPECS[workload.op], np.random.default_rng(7)
    operation, loader = Operation(context, workload), ProgramLoader(context)
    feasible = spec.feasible(workload, context.info)
    chosen = [spec.safe(workload, context.info)]
    for variant in spec.variants:
        of_variant = [config for config in feasible if config.variant == variant.name]
        assert not of_variant or "image_buffers" not in variant.requires
        if of_variant:
            chosen.append(of_variant[int(rng.integers(len(of_variant)))])
    for config in dict.fromkeys(chosen):
        program = loader.load(spec.source(workload, config), label_of(workload, config))
        verdict = operation.verify(program, config)
        assert verdict.ok, f"{config}: {verdict.message}"
