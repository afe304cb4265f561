"""Trials on a device: each ends with its own status, and what is measured is plausible."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import clk_planted
from clk_pocl import a_device
from clkiln.kernels import SPECS
from clkiln.kernels.types import Workload
from clkiln.runtime.context import Context
from clkiln.runtime.program import ProgramLoader, program_key
from clkiln.tuner import measure
from clkiln.tuner.trial import Bench

WORKLOAD = Workload.of("planted", m=5, n=37)


@pytest.fixture(scope="module", autouse=True)
def planted() -> Iterator[clk_planted.PlantedSpec]:
    yield clk_planted.install()
    del SPECS["planted"]


@pytest.fixture(scope="module", params=[True, False], ids=["events", "clock"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with Context(a_device(), profiling=request.param) as context:
        yield Bench(context)


@pytest.mark.parametrize("way", ["syntax", "greedy", "hungry", "nan", "bucket", "past_end"])
def test_failures_are_told_apart(bench: Bench, way: str) -> None:
    outcome = bench.trial(WORKLOAD, clk_planted.how(way), None)
    assert outcome.status == clk_planted.ENDS[way] and outcome.message
    assert outcome.time is None and not outcome.binary
    assert bench.context.memory.used == 0
    # What breaks a constraint is never built.
    assert (outcome.compile_time is None) == (way == "greedy")


def test_a_sound_candidate_is_measured(bench: Bench) -> None:
    good = bench.trial(WORKLOAD, clk_planted.how("good"), None)
    slow = bench.trial(WORKLOAD, clk_planted.how("slow"), None)
    for outcome in (good, slow):
        assert outcome.status == "ok" and not outcome.message
        assert outcome.time is not None and outcome.spread is not None
        assert outcome.spread >= 0 and outcome.repeats >= measure.MIN_REPEATS
        assert outcome.error is not None and outcome.error < 1e-6
        assert outcome.compile_time is not None and outcome.compile_time > 0
    assert good.time is not None and slow.time is not None and slow.time > 4 * good.time
    assert bench.context.memory.used == 0


def test_a_hopeless_candidate_is_cut_short(bench: Bench) -> None:
    free = bench.trial(WORKLOAD, clk_planted.how("slow"), None)
    assert free.time is not None and free.repeats > measure.MIN_REPEATS
    cut = bench.trial(WORKLOAD, clk_planted.how("slow"), free.time / 100)
    assert cut.status == "ok" and cut.repeats == measure.MIN_REPEATS
    near = bench.trial(WORKLOAD, clk_planted.how("slow"), free.time)
    assert near.repeats > measure.MIN_REPEATS


def test_the_binary_loads_and_computes(bench: Bench) -> None:
    """Taken after the launch, under the key that a start asks for."""
    outcome = bench.trial(WORKLOAD, clk_planted.how("good"), None)
    source = SPECS["planted"].source(WORKLOAD, clk_planted.how("good"))
    assert outcome.key == program_key(bench.context.info.driver_key, source)

    class Kept:
        keeps = True

        def get_binaries(self, keys: object) -> dict[str, bytes]:
            return {outcome.key: outcome.binary}

        def put_binary(self, key: str, payload: bytes, *, label: str, driver: str) -> None:
            raise AssertionError("nothing is compiled")

    loader = ProgramLoader(bench.context, Kept(), require_cache=True)
    program = loader.load(source, "planted")
    assert bench.operation(WORKLOAD).verify(program, clk_planted.how("good")).ok


def test_the_inputs_of_a_workload_are_the_same_in_every_worker(bench: Bench) -> None:
    """So that a candidate is right or wrong for all time, and not by the luck of its worker."""
    first = bench.operation(WORKLOAD).inputs["x"]
    assert bench.operation(WORKLOAD).inputs["x"] is first
    assert bench.operation(WORKLOAD.replace(m=4)).inputs["x"].shape == (4, 37)
    assert np.array_equal(bench.operation(WORKLOAD).inputs["x"], first)


def test_streaming_operands_are_rotated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through as many copies as fit, all of them given back."""
    config = clk_planted.how("good")
    operation = bench.operation(WORKLOAD)
    program = ProgramLoader(bench.context).load(
        SPECS["planted"].source(WORKLOAD, config), "planted"
    )
    bound = operation.bind(program, config)
    held = bench.context.memory.used
    copies = measure._rotation(operation, config, bound)
    assert len(copies) == 1 + measure.MAX_COPIES
    assert len({id(c.tensors["x"]) for c in copies}) == len(copies)
    assert len({id(c.tensors["y"]) for c in copies}) == 1
    for copy in copies[1:]:
        copy.tensors["x"].release()
    size = bound.tensors["x"].nbytes
    monkeypatch.setattr(measure, "STREAM_BYTES", 3 * size)
    timing = measure.time_bound(operation, config, bound, None)
    assert timing.median > 0 and bench.context.memory.used == held
    # Where others took the memory meanwhile, what could be copied has to do.
    monkeypatch.setattr(measure, "STREAM_BYTES", 10 * size)
    full, bench.context.memory.largest = bench.context.memory.largest, size - 1
    try:
        assert measure.time_bound(operation, config, bound, None).median > 0
    finally:
        bench.context.memory.largest = full
    assert bench.context.memory.used == held
    bound.release()
