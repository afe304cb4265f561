"""Tensors: what goes in comes out, and what does not fit is named before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_pocl import a_device
from clkiln.errors import DeviceError, LaunchError, OutOfDeviceMemory
from clkiln.runtime.context import Context
from clkiln.runtime.device import Device
from clkiln.runtime.memory import MemoryBudget, Tensor
from clkiln.units import readable

quick = settings(max_examples=60, deadline=None, derandomize=True)
IMAGE_DTYPES = ("float32", "float16", "uint32")


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    with Context(a_device(), budget=1 << 24) as context:
        yield context


@pytest.fixture(autouse=True)
def nothing_is_left(context: Context) -> Iterator[None]:
    """Every test gives back all the memory that it took."""
    yield
    assert context.memory.used == 0


def random_bits(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray[Any, Any]:
    """Any bits: NaN with payloads, infinities and denormals among them."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return raw.view(dtype).reshape(shape)


# --- contents -------------------------------------------------------------------------------------


@quick
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.sampled_from(["float32", "float16", "int32", "uint8", "int8", "uint32"]),
    st.integers(0, 99),
)
def test_buffer_round_trip(context: Context, shape: list[int], dtype: str, seed: int) -> None:
    data = random_bits(tuple(shape), dtype, seed)
    tensor = context.upload(data, what="data")
    other = tensor.copy("the copy")
    assert (tensor.shape, tensor.dtype, tensor.nbytes) == (data.shape, data.dtype, data.nbytes)
    assert tensor.read().tobytes() == other.read().tobytes() == data.tobytes()
    count = data.size // 2
    assert tensor.read(count).tobytes() == data.reshape(-1)[:count].tobytes()
    tensor.release()
    assert other.read().tobytes() == data.tobytes()  # a copy, not a view
    other.release()


@pytest.mark.parametrize("dtype", IMAGE_DTYPES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (7, 64), (64, 3)])
def test_image_round_trip(context: Context, dtype: str, height: int, width: int) -> None:
    data = random_bits((height, width, 4), dtype, height)
    tensor = context.upload(data, "image2d", what="an image")
    other = tensor.copy()
    assert tensor.read().tobytes() == other.read().tobytes() == data.tobytes()
    tensor.release()
    other.release()


def test_arrays_that_are_not_contiguous(context: Context) -> None:
    data = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    tensor = context.upload(data, what="a view")
    assert np.array_equal(tensor.read(), data)
    tensor.release()


def test_empty_tensor(context: Context) -> None:
    for tensor in (context.empty((0, 3), "float32", what="x"),
                   context.upload(np.empty(0, np.int32), what="x")):  # fmt: skip
        assert tensor.read().size == 0
        tensor.write(np.empty(0, tensor.dtype))
        tensor.copy().release()
        tensor.release()


@pytest.mark.parametrize("blocking", [True, False])
def test_write_changes_the_start_alone(context: Context, blocking: bool) -> None:
    tensor = context.upload(np.arange(10, dtype=np.int32), what="x")
    new = np.array([-1, -2, -3], np.int32)
    tensor.write(new, blocking=blocking)
    context.finish()
    assert tensor.read().tolist() == [-1, -2, -3, 3, 4, 5, 6, 7, 8, 9]
    tensor.release()


def test_rows_of_an_image_are_written(context: Context) -> None:
    content = np.arange(36, dtype=np.float32).reshape(3, 3, 4)
    image = context.upload(content, "image2d", what="picture")
    image.write(-content[:2])
    assert np.array_equal(image.read(), np.concatenate([-content[:2], content[2:]]))
    image.release()


def test_write_refuses_what_does_not_fit(context: Context) -> None:
    tensor = context.upload(np.zeros(4, np.int32), what="state")
    for wrong in (np.zeros(5, np.int32), np.zeros(2, np.int64), np.zeros(2, np.float32)):
        with pytest.raises(ValueError, match="state: can't write"):
            tensor.write(wrong)
    image = context.upload(np.zeros((2, 3, 4), np.float32), "image2d", what="picture")
    for part in (np.zeros(4, np.float32), np.zeros((3, 3, 4), np.float32)):
        with pytest.raises(ValueError, match="picture: can't write"):
            image.write(part)
    tensor.release()
    image.release()


@quick
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40))
def test_move_within_a_buffer(context: Context, size: int, start: int, count: int) -> None:
    data = np.arange(size, dtype=np.int32)
    tensor = context.upload(data, what="cells")
    try:
        tensor.move(start, count)
    except ValueError:
        assert 0 < start < count
    except LaunchError as error:
        assert "cells" in str(error) and (start + count > size or count == 0)
    else:
        expected = data.copy()
        if start:
            expected[:count] = data[start : start + count]
        assert np.array_equal(tensor.read(), expected)
    finally:
        tensor.release()


def test_take_from_another_buffer(context: Context) -> None:
    old = context.upload(np.arange(6, dtype=np.float16), what="old")
    new = context.upload(np.full(9, -1, np.float16), what="new")
    new.take(old, 4)
    assert new.read().tolist() == [0, 1, 2, 3, -1, -1, -1, -1, -1]
    with pytest.raises(LaunchError, match="copy from old to new"):
        new.take(old, 7)
    old.release()
    new.release()


def test_reading_past_the_end_raises(context: Context) -> None:
    tensor = context.upload(np.zeros(4, np.int32), what="short")
    with pytest.raises(LaunchError, match="copy from short"):
        tensor.read(5)
    tensor.release()


# --- devices --------------------------------------------------------------------------------------


def test_tensors_of_another_context_are_refused(context: Context) -> None:
    """By name, and before anything is copied; a copy by way of the host is explicit."""
    with Context(context.device) as other:
        there = other.upload(np.arange(3, dtype=np.int32), what="logits")
        here = context.upload(np.zeros(3, np.int32), what="here")
        with pytest.raises(DeviceError, match=r"logits lies on .*\.to\(context\)"):
            here.take(there, 3)
        with pytest.raises(DeviceError, match="logits"):
            there.belongs_to(context)
        there.belongs_to(other)
        moved = there.to(context)
        moved.belongs_to(context)
        assert moved.read().tolist() == [0, 1, 2] and moved.what == "logits"
        assert not here.read().any()
        for tensor in (there, here, moved):
            tensor.release()
        assert other.memory.used == 0


def test_an_image_stays_an_image_on_another_device(context: Context) -> None:
    data = random_bits((3, 5, 4), "uint32", 0)
    image = context.upload(data, "image2d", what="w")
    with Context(context.device) as other:
        moved = image.to(other)
        assert moved.memory == "image2d" and np.array_equal(moved.read(), data)
        moved.release()
    image.release()


# --- the budget -----------------------------------------------------------------------------------


@quick
@given(st.integers(0, 1000), st.integers(0, 1000), st.lists(st.integers(0, 600), max_size=20))
def test_budget_counts(limit: int, largest: int, sizes: list[int]) -> None:
    budget = MemoryBudget(limit, largest)
    held: list[int] = []
    for i, size in enumerate(sizes):
        fits = size <= largest and sum(held) + size <= limit
        try:
            budget.take(size, f"tensor {i}")
        except OutOfDeviceMemory as error:
            assert not fits and f"tensor {i} takes {readable(size)}" in str(error)
        else:
            assert fits
            held.append(size)
        assert budget.used == sum(held) <= limit
        if i % 3 == 2 and held:
            budget.give_back(held.pop())


def test_what_does_not_fit_is_named(context: Context) -> None:
    weights = context.empty((3, 1 << 20), "float32", what="the weights")
    with pytest.raises(OutOfDeviceMemory) as raised:
        context.empty((2, 1 << 20), "float32", what="the KV cache")
    message = str(raised.value)
    assert message.startswith("the KV cache takes 8.00 MiB and does not fit: 12.0 MiB of 16.0 MiB")
    assert "--ctx-size" in message and "CLKILN_MEMORY_BUDGET" in message
    with pytest.raises(OutOfDeviceMemory, match="the KV cache"):
        weights.copy("the KV cache")
    weights.release()
    context.empty((2, 1 << 20), "float32", what="the KV cache").release()


def test_the_largest_allocation_is_a_limit_of_its_own(context: Context) -> None:
    too_much = context.info.max_alloc + 1
    with Context(context.device, budget=4 * too_much) as roomy:
        with pytest.raises(OutOfDeviceMemory, match=r"^x takes .*; this device's largest alloc"):
            roomy.empty((too_much,), "uint8", what="x")
        assert roomy.memory.used == 0


def test_the_budget_from_the_environment(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLKILN_MEMORY_BUDGET", "64K")
    with Context(context.device) as small:
        small.empty((64 << 10,), "uint8", what="x").release()
        with pytest.raises(OutOfDeviceMemory, match=r"64\.0 KiB are in use"):
            small.empty(((64 << 10) + 1,), "uint8", what="x")


@pytest.mark.parametrize(
    ("shape", "dtype", "what"),
    [((4, 4), "float32", "flat"), ((4, 4, 3), "float32", "rgb"), ((4, 4, 4), "int8", "bytes")],
)
def test_what_is_no_image_takes_no_memory(
    context: Context, shape: tuple[int, ...], dtype: str, what: str
) -> None:
    with pytest.raises(ValueError, match=f"{what}: no image"):
        context.empty(shape, dtype, "image2d", what=what)
    assert context.memory.used == 0


def test_what_the_driver_refuses_is_named_and_given_back(context: Context) -> None:
    """By a driver that promised more than it gives."""
    width = context.info.image2d_max_width + 1
    promised = Device(replace(context.info, image2d_max_width=width), context.device.handle)
    with (
        Context(promised) as other,
        pytest.raises(OutOfDeviceMemory, match=r"a wide image .* was refused by"),
    ):
        other.empty((1, width, 4), "uint32", "image2d", what="a wide image")
    assert other.memory.used == 0


def test_an_image_beyond_what_the_device_says_is_not_tried(context: Context) -> None:
    height = context.info.image2d_max_height + 1
    with pytest.raises(OutOfDeviceMemory, match=rf"a high image is an image of 1 x {height}; the"):
        context.empty((height, 1, 4), "uint32", "image2d", what="a high image")
    assert context.memory.used == 0


def test_releasing_twice_gives_back_once(context: Context) -> None:
    kept = context.empty((8,), "uint8", what="kept")
    tensor = Tensor(context, (8,), "uint8", what="x")
    tensor.release()
    tensor.release()
    assert context.memory.used == 8
    kept.release()
