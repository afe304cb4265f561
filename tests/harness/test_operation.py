"""One way to run a spec: it catches kernels that are wrong in any of the ways kernels are."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

import clk_planted
from clk_pocl import a_device
from clkiln.errors import LaunchError, OutOfDeviceMemory
from clkiln.harness import operation as harness
from clkiln.harness.operation import Operation, bind, guard, label_of, poison, source_of
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.runtime.context import Context
from clkiln.runtime.program import Program, ProgramLoader

WORKLOAD = Workload.of("planted", m=5, n=37)


@pytest.fixture(scope="module", autouse=True)
def planted() -> Iterator[clk_planted.PlantedSpec]:
    yield clk_planted.install()
    del SPECS["planted"]


@pytest.fixture(scope="module")
def loader() -> Iterator[ProgramLoader]:
    with Context(a_device(), profiling=True) as context:
        yield ProgramLoader(context)


@pytest.fixture(autouse=True)
def nothing_is_left(loader: ProgramLoader) -> Iterator[None]:
    yield
    assert loader.context.memory.used == 0


def program_of(loader: ProgramLoader, workload: Workload, config: Config) -> Program:
    return loader.load(source_of(workload, config), label_of(workload, config))


@pytest.mark.parametrize("way", clk_planted.WRONG)
def test_wrong_kernels_are_caught(loader: ProgramLoader, way: str) -> None:
    """``bucket`` is right for as many tokens as its bucket holds, and for no fewer."""
    config = clk_planted.how(way)
    operation = Operation(loader.context, WORKLOAD)
    verdict = operation.verify(program_of(loader, WORKLOAD, config), config)
    assert not verdict.ok
    assert re.match(clk_planted.WRONG[way], verdict.message)


@pytest.mark.parametrize("m", [1, 2, 5])
def test_a_right_kernel_passes_at_any_size(loader: ProgramLoader, m: int) -> None:
    config, workload = clk_planted.how("good"), WORKLOAD.replace(m=m)
    operation = Operation(loader.context, workload)
    program = program_of(loader, WORKLOAD.replace(m=5), config)
    for _ in range(3):
        verdict = operation.verify(program, config)
        assert verdict.ok and verdict.error < 1e-6 and not verdict.message


def test_a_bound_launch_is_verified_and_stays(loader: ProgramLoader) -> None:
    config = clk_planted.how("good")
    operation = Operation(loader.context, WORKLOAD)
    bound = operation.bind(program_of(loader, WORKLOAD, config), config)
    held = loader.context.memory.used
    assert operation.verify(bound.launch.program, config, bound=bound).ok
    assert loader.context.memory.used == held > 0
    bound.release()


def test_twins_share_all_but_what_streams(loader: ProgramLoader) -> None:
    config = clk_planted.how("good")
    operation = Operation(loader.context, WORKLOAD)
    bound = operation.bind(program_of(loader, WORKLOAD, config), config)
    twin = bound.twin({"x"})
    assert twin.tensors["x"] is not bound.tensors["x"]
    assert (
        twin.tensors["y"] is bound.tensors["y"] and twin.tensors["state"] is bound.tensors["state"]
    )
    assert list(twin.launch.tensors) == list(twin.tensors.values())
    bound.tensors["x"].write(np.zeros(WORKLOAD.size("n"), np.float32))
    twin.launch.enqueue()
    got = twin.tensors["y"].read(5 * 37).reshape(5, 37)
    np.testing.assert_allclose(got, operation.reference["y"], rtol=1e-5, atol=1e-6)
    twin.tensors["x"].release()
    bound.release()


def test_what_does_not_fit_leaves_nothing_behind(loader: ProgramLoader) -> None:
    """Neither tensors bound half, nor copies made half."""
    config = clk_planted.how("good")
    program = program_of(loader, WORKLOAD, config)
    operation = Operation(loader.context, WORKLOAD)
    memory = loader.context.memory
    full = memory.limit
    try:
        memory.limit = 5 * 37 * 4 + 100  # the state and x
        with pytest.raises(OutOfDeviceMemory, match=r"^planted m=5 n=37: y takes"):
            operation.bind(program, config)
        assert memory.used == 0
        memory.limit = full
        bound = operation.bind(program, config)
        held, memory.limit = memory.used, memory.used + 100
        with pytest.raises(OutOfDeviceMemory):
            bound.twin({"x", "state"})
        assert memory.used == held
    finally:
        memory.limit = full
    bound.release()


def test_a_launch_that_fails_leaves_nothing_behind(loader: ProgramLoader) -> None:
    """The program of another work-group size than the configuration's geometry."""
    operation = Operation(loader.context, WORKLOAD)
    program = program_of(loader, WORKLOAD, clk_planted.how("good"))
    with pytest.raises(LaunchError):
        operation.verify(program, clk_planted.how("good").replace(LX=8))


def test_inputs_depend_on_the_seed_alone(loader: ProgramLoader) -> None:
    first, same, other = (Operation(loader.context, WORKLOAD, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.inputs["x"], same.inputs["x"])
    assert not np.array_equal(first.inputs["x"], other.inputs["x"])
    assert first.reference is first.reference


def test_packing_is_kept_for_one_layout(loader: ProgramLoader) -> None:
    workload = Workload.of("gemv", bias="no", fuse="none", k=32, n=5, w="q8_0")
    operation = Operation(loader.context, workload)
    narrow = Config.of("buffer", R=4, S=16, LX=1, KS=1, G=1, U=1)
    first = operation.pack(narrow)
    assert operation.pack(narrow.replace(LX=2)) is first
    wide = operation.pack(narrow.replace(R=8))
    assert wide["w.q"].size == 8 * 32 and first["w.q"].size == 2 * 4 * 32
    again = operation.pack(narrow)
    assert all(np.array_equal(again[name], first[name]) for name in first)


@pytest.mark.parametrize(
    "text", ["add d=19 m=2", "argmax n=33", "gemv bias=no fuse=add k=32 n=19 w=f16"]
)
def test_guards_change_under_whatever_a_kernel_may_do(loader: ProgramLoader, text: str) -> None:
    """An overrun by one element, of a launch for one element more, in place of every spec's own."""
    workload = Workload.parse(text)
    spec = SPECS[workload.op]
    config = spec.safe(workload, loader.context.info)
    operation = Operation(loader.context, workload)
    bound = operation.bind(program_of(loader, workload, config), config)
    (name,) = (a.name for a in spec.arguments(workload, config) if a.role in ("output", "inout"))
    tensor = bound.tensors[name]
    content = tensor.read()
    count = content.size - harness.GUARD
    assert content[count:].tobytes() == guard(content.dtype).tobytes()
    for change in ("zero added", "poison", "zeroed"):
        spoiled = content.copy()
        spoiled[count] = {
            "zero added": content[count] + content.dtype.type(0),
            "poison": poison(content.dtype, 1)[0],
            "zeroed": 0,
        }[change]
        if np.issubdtype(content.dtype, np.integer) and change != "zeroed":
            continue  # whole numbers know no zero that shows
        tensor.write(spoiled)
        verdict = operation.verify(bound.launch.program, config, bound=bound)
        assert verdict.message == f"{name}: written past its end", change
    tensor.write(content)
    assert operation.verify(bound.launch.program, config, bound=bound).ok
    bound.release()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.uint8])
def test_poison_cannot_be_a_result(dtype: type[np.generic]) -> None:
    values = poison(np.dtype(dtype), 3)
    assert values.dtype == dtype and values.shape == (3,)
    if np.issubdtype(dtype, np.floating):
        assert np.isnan(values).all()
    else:
        assert set(values.tolist()) == {np.iinfo(values.dtype).min}


def test_bind_refuses_what_the_spec_does_not_pack(loader: ProgramLoader) -> None:
    config = clk_planted.how("good")
    program = program_of(loader, WORKLOAD, config)
    with pytest.raises(KeyError):
        bind(loader.context, WORKLOAD, program, config, {"state": np.zeros(4, np.int32)})
