"""Row-wise operations and roofs against their references, at random shapes."""

from __future__ import annotations

import numpy as np
import pytest

from clk_cases import any_of
from clk_run import Runner, assert_close, relative_error
from clk_shapes import random_workload
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload


@pytest.mark.parametrize("op", ["add", "argmax", "rmsnorm", "softmax"])
@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(5, 10))]
)
def test_random_shapes(runner: Runner, op: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec, workload = SPECS[op], random_workload(op, rng)
    config = any_of(spec, workload, runner.limits, rng)
    runner.check(spec, workload, config, spec.inputs(workload, rng))


@pytest.mark.parametrize("text", ["roof_read mb=1", "roof_read mb=3", "roof_fma mops=2"])
@pytest.mark.parametrize("seed", range(3))
def test_roofs_do_all_their_work(runner: Runner, text: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    workload = Workload.parse(text)
    spec = SPECS[workload.op]
    config = any_of(spec, workload, runner.limits, rng)
    runner.check(spec, workload, config, spec.inputs(workload, rng))


def test_roof_fma_counts_its_operations(runner: Runner) -> None:
    spec, workload = SPECS["roof_fma"], Workload.of("roof_fma", mops=4)
    for config in spec.feasible(workload, runner.limits):
        steps = int(spec.defines(workload, config)["STEPS"])
        items = spec.geometry(workload, config).global_size[0]
        assert 2 * steps * items * config["A"] * config["V"] == spec.flops(workload)


def test_roof_read_misses_no_element(runner: Runner) -> None:
    """A single element that changes, anywhere, changes the sum by as much."""
    spec, workload = SPECS["roof_read"], Workload.of("roof_read", mb=1)
    rng = np.random.default_rng(0)
    config = Config.of("buffer", LX=64, V=8, A=4, G=8)
    for at in (0, spec.bytes(workload) // 4 - 1, *rng.integers(0, spec.bytes(workload) // 4, 3)):
        x = np.zeros(spec.bytes(workload) // 4, np.float32)
        x[at] = 1
        got, _ = runner.run(spec, workload, config, {"x": x})
        assert got["out"][0] == 1


ARGMAX_VALUES = {
    "plain": ([3, 1, 4, 1, 5, 9, 2, 6], 5, 0),
    "tie": ([0, 7, 3, 7, 7, 1, 0, 7], 1, 0),
    "all equal": ([2] * 8, 0, 2),
    "negative": ([-5, -3, -4, -9, -3.5, -8, -7, -6], 1, 0),
    "signed zeros": ([-0.0, 0.0] * 4, 0, 2),
    "nan": ([1, 2, np.nan, 4, 5, 6, 7, 8], 0, 1),
    "infinite": ([1, 2, 3, 4, 5, 6, 7, np.inf], 0, 1),
    "minus infinity": ([1, 2, -np.inf, 4, 5, 6, 7, 8], 0, 1),
    "all infinite": ([np.inf] * 8, 0, 3),
    "all nan": ([np.nan] * 8, 0, 1),
}


@pytest.mark.parametrize("name", ARGMAX_VALUES)
@pytest.mark.parametrize("repeat", [1, 5])
def test_argmax_of_special_values(runner: Runner, name: str, repeat: int) -> None:
    """Also with the values in the vectors' rest (8 = 8 + 0, 40 + 3), where other code runs."""
    values, index, status = ARGMAX_VALUES[name]
    x = np.array(values * repeat + values[:3] * (repeat > 1), np.float32)
    spec, workload = SPECS["argmax"], Workload.of("argmax", n=x.size)
    buffers = [Config.of("buffer", LX=n, V=v) for n, v in ((1, 1), (1, 8), (4, 2), (8, 1))]
    for config in (*buffers, Config.of("image", LX=1, V=8), Config.of("image", LX=4, V=4)):
        got, _ = runner.run(spec, workload, config, {"x": x})
        assert got["out"].tolist() == [index, status]
        assert spec.reference(workload, {"x": x})["out"].tolist() == [index, status]


def test_argmax_of_one(runner: Runner) -> None:
    spec, workload = SPECS["argmax"], Workload.of("argmax", n=1)
    config = spec.safe(workload, runner.limits)
    runner.check(spec, workload, config, {"x": np.array([-3], np.float32)})


def test_softmax_of_large_and_small_logits(runner: Runner) -> None:
    spec, workload = SPECS["softmax"], Workload.of("softmax", n=37, m=4)
    x = np.random.default_rng(0).normal(0, 2, (4, 37)).astype(np.float32)
    x += np.array([[3e4], [-3e4], [0], [88]], np.float32)
    x[2] = 5  # all equal
    for config in (Config.of("buffer", LX=1, V=8), Config.of("buffer", LX=16, V=1)):
        runner.check(spec, workload, config, {"x": x})


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rmsnorm_at_all_magnitudes(runner: Runner, scale: float) -> None:
    """Where eps rules, where it doesn't, and where squares are large."""
    rng = np.random.default_rng(1)
    spec, workload = SPECS["rmsnorm"], Workload.of("rmsnorm", d=100, m=2, eps="1e-05")
    inputs = spec.inputs(workload, rng)
    inputs["x"] *= np.float32(scale)
    runner.check(spec, workload, Config.of("buffer", LX=4, V=4), inputs)


def test_nan_never_passes() -> None:
    spec, workload = SPECS["add"], Workload.of("add", d=2, m=1)
    config = Config.of("buffer", LX=1, V=1, U=1)
    want = {"y": np.array([[1.0, 2.0]])}
    assert relative_error(want["y"], want["y"]) == 0
    for wrong in ([[1.0, np.nan]], [[1.0, np.inf]], [[1.0, 2.1]], [[1.0, 2.0, 3.0]]):
        with pytest.raises(AssertionError, match="relative L2 error"):
            assert_close(spec, workload, config, {"y": np.array(wrong)}, want)
