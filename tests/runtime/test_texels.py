"""A buffer seen as RGBA texels: the same bytes, without a copy."""

from __future__ import annotations

import numpy as np
import pytest

from clk_pocl import a_device
from clkiln.errors import DeviceError
from clkiln.kernels.source import read_source
from clkiln.kernels.types import Geometry
from clkiln.runtime.context import Context
from clkiln.runtime.launch import Launch
from clkiln.runtime.memory import Texels
from clkiln.runtime.program import ProgramLoader

#: Reads with every width, and writes back what it read through another image.
TEXT = (
    read_source("texels.clh")
    + """
__kernel void loads(TEXELS(x), __global float *y, TEXELS_OUT(z)) {
  const int i = get_global_id(0);
  for (int k = 0; k < 16; ++k) y[16 * i + k] = texel_load1(16 * i + k, x);
  y += 64;
  for (int k = 0; k < 8; ++k) vstore2(texel_load2(8 * i + k, x), 8 * i + k, y);
  y += 64;
  for (int k = 0; k < 4; ++k) vstore4(texel_load4(4 * i + k, x), 4 * i + k, y);
  y += 64;
  for (int k = 0; k < 2; ++k) vstore8(texel_load8(2 * i + k, x), 2 * i + k, y);
  y += 64;
  vstore16(texel_load16(i, x), i, y);
  texel_store16(texel_load16(i, x), i, z);
}
"""
)


class Loads:
    text, kernel, options, digest = TEXT, "loads", ("-cl-std=CL1.2",), "loads"


@pytest.fixture
def context() -> Context:
    return Context(a_device())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("count", [64, 61])
def test_loads_of_every_width_agree(context: Context, dtype: str, count: int) -> None:
    """Also where the last texel is not full: a buffer is filled up to whole ones."""
    x = np.random.default_rng(count).standard_normal(count).astype(dtype)
    source = context.upload(x, what="x")
    y = context.upload(np.full(5 * 64, np.nan, np.float32), what="y")
    z = context.upload(np.full(64, np.nan, dtype), what="z")
    program = ProgramLoader(context).load(Loads(), "loads")
    tensors = [source.seen_as("image1d"), y.seen_as("buffer"), z.seen_as("image1d")]
    Launch(program, tensors, Geometry((4,), (1,))).enqueue()
    for read in y.read().reshape(5, 64):
        assert np.array_equal(read[:count], x.astype(np.float32))
    assert np.array_equal(z.read()[:count], x)
    for tensor in (source, y, z):
        tensor.release()
    assert context.memory.used == 0


@pytest.mark.parametrize("nbytes", [1, 16, 17, 256])
def test_a_view_is_as_long_as_what_is_read(context: Context, nbytes: int) -> None:
    """Not as its tensor: a device has a longest image buffer."""
    tensor = context.upload(np.arange(64, dtype=np.float32), what="x")
    view = tensor.seen_as("image1d", nbytes)
    assert isinstance(view, Texels)
    assert view.handle.width == -(-nbytes // 16)
    tensor.release()


def test_a_view_is_made_once_and_follows_its_tensor(context: Context) -> None:
    tensor = context.upload(np.arange(8, dtype=np.float32), what="x")
    assert tensor.seen_as("buffer") is tensor
    assert tensor.seen_as("image1d") is tensor.seen_as("image1d")
    assert tensor.seen_as("image1d", 99) is tensor.seen_as("image1d")
    with pytest.raises(DeviceError, match="x lies on"):
        tensor.seen_as("image1d").belongs_to(Context(a_device()))
    tensor.release()


@pytest.mark.parametrize("memory", ["buffer", "image2d"])
def test_what_cannot_be_seen_so_is_refused(context: Context, memory: str) -> None:
    shape = (4,) if memory == "buffer" else (1, 1, 4)
    dtype = np.int32 if memory == "buffer" else np.float32
    tensor = context.upload(np.zeros(shape, dtype), memory, what="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x"):
        tensor.seen_as("image1d")
    tensor.release()
