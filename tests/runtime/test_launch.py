"""Launches: arguments that stay bound, errors that name the program, times that are plausible."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from clk_pocl import a_device
from clkiln.errors import DeviceError, LaunchError
from clkiln.kernels.source import Source
from clkiln.kernels.types import Geometry
from clkiln.runtime.context import Context
from clkiln.runtime.launch import Launch, event_seconds
from clkiln.runtime.memory import Tensor
from clkiln.runtime.native import named
from clkiln.runtime.program import Program, ProgramLoader

ADD = Source(
    "__kernel __attribute__((reqd_work_group_size(4, 1, 1)))\n"
    "void add(__global const int *x, __global int *y) { int i = get_global_id(0); y[i] += x[i]; }",
    "add",
    ("-cl-std=CL1.2",),
)
SPIN = Source(
    "__kernel __attribute__((reqd_work_group_size(1, 1, 1)))\n"
    "void spin(__global int *y) { for (volatile int i = 0; i < 10000000; i++) {} y[0]++; }",
    "spin",
    ("-cl-std=CL1.2",),
)
EIGHT = Geometry((8,), (4,))


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    with Context(a_device(), profiling=True) as context:
        yield context


@pytest.fixture(scope="module")
def add(context: Context) -> Program:
    return ProgramLoader(context).load(ADD, "add n=8")


def full_of(context: Context, value: int) -> Tensor:
    return context.upload(np.full(8, value, np.int32), what=f"full of {value}")


def test_launches_of_one_program_keep_their_arguments(context: Context, add: Program) -> None:
    """In any order, against what the same additions give in NumPy."""
    tensors = [full_of(context, 1 + i) for i in range(5)]
    expected = [np.full(8, 1 + i) for i in range(5)]
    rng = random.Random(0)
    pairs = [tuple(rng.sample(range(5), 2)) for _ in range(6)]
    launches = [Launch(add, [tensors[x], tensors[y]], EIGHT) for x, y in pairs]
    for turn in rng.choices(range(6), k=40):
        launches[turn].enqueue()
        x, y = pairs[turn]
        expected[y] = (expected[y] + expected[x]).astype(np.int32)
    for tensor, want in zip(tensors, expected, strict=True):
        assert np.array_equal(tensor.read(), want)
        tensor.release()


def test_a_launch_keeps_its_tensors_alive(context: Context, add: Program) -> None:
    y = full_of(context, 0)
    launch = Launch(add, [full_of(context, 5), y], EIGHT)
    launch.enqueue()
    assert y.read().tolist() == [5] * 8
    for tensor in launch.tensors:
        tensor.release()


def test_another_geometry_for_one_step(context: Context, add: Program) -> None:
    x, y = full_of(context, 2), full_of(context, 0)
    launch = Launch(add, [x, y], EIGHT)
    launch.enqueue(Geometry((4,), (4,)))
    assert y.read().tolist() == [2] * 4 + [0] * 4
    launch.enqueue()
    assert y.read().tolist() == [4] * 4 + [2] * 4
    x.release()
    y.release()


def test_a_tensor_of_another_device_is_refused(context: Context, add: Program) -> None:
    with Context(context.device) as other:
        here, there = full_of(context, 1), full_of(other, 7)
        with pytest.raises(DeviceError, match=r"full of 7 lies on .*\.to\(context\)"):
            Launch(add, [here, there], EIGHT)
        here.release()
        there.release()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_arguments_is_refused(context: Context, add: Program, count: int) -> None:
    tensors = [full_of(context, i) for i in range(count)]
    with pytest.raises(LaunchError, match=f"add n=8: {count} arguments for 2"):
        Launch(add, tensors, EIGHT)
    for tensor in tensors:
        tensor.release()


@pytest.mark.parametrize(
    "geometry", [Geometry((8,), (8,)), Geometry((6,), (4,)), Geometry((8,), (5,))]
)
def test_a_geometry_that_the_driver_refuses_is_named(
    context: Context, add: Program, geometry: Geometry
) -> None:
    x, y = full_of(context, 2), full_of(context, 0)
    with pytest.raises(LaunchError, match=r"^add n=8: launch of .* failed on "):
        Launch(add, [x, y], geometry).enqueue()
    x.release()
    y.release()


def test_arguments_that_the_driver_refuses_are_named(
    context: Context, add: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's own words, for a kernel that has no such arguments."""
    x, y = full_of(context, 1), full_of(context, 0)
    nothing = Source("__kernel void nothing() {}", "nothing", ("-cl-std=CL1.2",))
    program = ProgramLoader(context).load(nothing, "nothing")
    monkeypatch.setattr(Program, "kernel", lambda program: SimpleNamespace(num_args=2))
    with pytest.raises(LaunchError, match=r"nothing: bad arguments: clSetKernelArg .*INVALID_ARG"):
        Launch(program, [x, y], EIGHT)
    x.release()
    y.release()


def test_a_kernel_that_the_program_lacks_is_named(
    context: Context, add: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = ProgramLoader(context).load(ADD, "add n=8")
    x, y = full_of(context, 1), full_of(context, 0)
    program.kernel()
    monkeypatch.setattr(program, "name", "nowhere")
    with pytest.raises(LaunchError, match="clCreateKernel failed: INVALID_KERNEL_NAME"):
        Launch(program, [x, y], EIGHT)
    x.release()
    y.release()


def test_a_status_is_spelt_out() -> None:
    assert named(-52) == "INVALID_KERNEL_ARGS (-52)"
    assert named(-99999) == "status -99999"


def test_event_seconds_agree_with_the_clock(context: Context) -> None:
    y = full_of(context, 0)
    launch = Launch(ProgramLoader(context).load(SPIN, "spin"), [y], Geometry((1,), (1,)))
    launch.enqueue_timed().wait()
    start = time.perf_counter()
    event = launch.enqueue_timed()
    context.finish()
    wall = time.perf_counter() - start
    assert 0.002 < event_seconds(event) <= wall
    y.release()


def test_without_profiling_there_is_no_time(context: Context, add: Program) -> None:
    with Context(context.device) as plain:
        x, y = full_of(plain, 1), full_of(plain, 1)
        event = Launch(ProgramLoader(plain).load(ADD, "add"), [x, y], EIGHT).enqueue_timed()
        plain.finish()
        with pytest.raises(LaunchError, match="did not time a launch"):
            event_seconds(event)
        x.release()
        y.release()
