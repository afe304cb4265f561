"""Tensors on a device: buffers and images with a budget, and explicit copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import DeviceError, LaunchError, OutOfDeviceMemory
from ..units import readable
from .opencl import cl

if TYPE_CHECKING:
    from .context import Context
    from .device import DeviceInfo

#: An ``image1d`` is no memory of its own, but a buffer seen as RGBA texels.
Memory = Literal["buffer", "image1d", "image2d"]

_CHANNELS = {
    "float32": cl.channel_type.FLOAT,
    "float16": cl.channel_type.HALF_FLOAT,
    "uint32": cl.channel_type.UNSIGNED_INT32,
}
#: Bytes of the largest texel: buffers are filled up to whole ones.
_TEXEL = 16


class MemoryBudget:
    """Counts the bytes that a context holds, and refuses what does not fit, by name.

    ``why`` is what to say behind the largest allocation.
    """

    def __init__(self, limit: int, largest: int, why: str = "") -> None:
        self.limit, self.largest, self.used, self._why = limit, largest, 0, why

    def take(self, nbytes: int, what: str) -> None:
        """Raises :class:`OutOfDeviceMemory` if ``what`` is too large, alone or beside the rest."""
        if nbytes > self.largest:
            raise OutOfDeviceMemory(
                f"{what} takes {readable(nbytes)}; this device's largest allocation is "
                f"{readable(self.largest)}{self._why}"
            )
        if self.used + nbytes > self.limit:
            raise OutOfDeviceMemory(
                f"{what} takes {readable(nbytes)} and does not fit: {readable(self.used)} of "
                f"{readable(self.limit)} are in use (a smaller --ctx-size or model may fit, or "
                f"raise CLKILN_MEMORY_BUDGET)"
            )
        self.used += nbytes

    def give_back(self, nbytes: int) -> None:
        self.used -= nbytes


class Texels:
    """The first bytes of a buffer seen as RGBA texels, an ``image1d_buffer_t``.

    The last texel is filled up with what lies there. It keeps its tensor alive.
    """

    def __init__(self, tensor: Tensor, nbytes: int) -> None:
        self.tensor, self.context = tensor, tensor.context
        channel = _CHANNELS.get(tensor.dtype.name)
        if tensor.memory != "buffer" or channel is None:
            raise ValueError(f"{tensor.what}: no texels of {tensor.dtype} in {tensor.memory}")
        texel = 4 * tensor.dtype.itemsize
        width = -(-nbytes // texel)
        _check_texels(self.context.info, width, tensor.what)
        pixels = cl.ImageFormat(cl.channel_order.RGBA, channel)
        with self.context.errors(f"{tensor.what}: seeing it as an image"):
            self.handle: Any = cl.create_image(
                self.context.handle, cl.mem_flags.READ_WRITE, pixels,
                shape=(width,), buffer=tensor.handle,
            )  # fmt: skip

    def belongs_to(self, context: Context) -> None:
        """As :meth:`Tensor.belongs_to`."""
        self.tensor.belongs_to(context)


def _check_texels(info: DeviceInfo, width: int, what: str) -> None:
    """Raise :class:`LaunchError` if no image buffer of the device is ``width`` texels long."""
    if width > info.image_max_buffer_size:
        why = info.limits.because("image_max_buffer_size", "images", "cl12")
        raise LaunchError(
            f"{what} as an image buffer has {width} texels; the longest of {info.name} has "
            f"{info.image_max_buffer_size}{why}"
        )


def _check_image(info: DeviceInfo, shape: tuple[int, ...], what: str) -> None:
    """Raise :class:`OutOfDeviceMemory` if the device has no images, or none so large."""
    if not info.images:
        why = info.limits.because("images")
        raise OutOfDeviceMemory(f"{what} is an image; {info.name} has none{why}")
    height, width = shape[:2]
    if width > info.image2d_max_width or height > info.image2d_max_height:
        why = info.limits.because("image2d_max_width", "image2d_max_height")
        raise OutOfDeviceMemory(
            f"{what} is an image of {width} x {height}; the largest of {info.name} has "
            f"{info.image2d_max_width} x {info.image2d_max_height}{why}"
        )


class Tensor:
    """An array on a device. For an image2d, ``shape`` is ``(height, width, 4)``.

    Made by :meth:`.context.Context.empty` and :meth:`.context.Context.upload`.
    """

    def __init__(
        self,
        context: Context,
        shape: Sequence[int],
        dtype: DTypeLike,
        memory: Memory = "buffer",
        *,
        data: NDArray[Any] | None = None,
        what: str = "a tensor",
    ) -> None:
        self.context, self.memory, self.what = context, memory, what
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.nbytes = max(1, int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize)
        #: Views by the bytes that they cover.
        self._texels: dict[int, Texels] = {}
        context.memory.take(self.nbytes, what)
        try:
            #: Any: pyopencl's types tell buffers from images, and here ``memory`` does.
            self.handle: Any = self._allocate(data)
        except BaseException as error:
            context.memory.give_back(self.nbytes)
            if not isinstance(error, (cl.Error, MemoryError)):
                raise
            raise OutOfDeviceMemory(
                f"{what} ({readable(self.nbytes)}) was refused by {context.info.name}: {error}"
            ) from error

    def _allocate(self, data: NDArray[Any] | None) -> cl.Buffer | cl.Image:
        flags: Any = cl.mem_flags.READ_WRITE
        if data is not None:
            flags |= cl.mem_flags.COPY_HOST_PTR
            data = np.ascontiguousarray(data, self.dtype).reshape(self.shape)
        if self.memory == "image1d":
            raise ValueError(f"{self.what}: allocate a buffer, and see it as texels")
        if self.memory == "buffer":
            # Filled up to whole texels, so that all of it can be seen as an image.
            size = -(-self.nbytes // _TEXEL) * _TEXEL
            if data is None or not data.nbytes:
                return cl.Buffer(self.context.handle, cl.mem_flags.READ_WRITE, size=size)
            if size > self.nbytes:
                filled = np.zeros(size, np.uint8)
                filled[: self.nbytes] = data.reshape(-1).view(np.uint8)
                data = filled
            return cl.Buffer(self.context.handle, flags, hostbuf=data)
        if len(self.shape) != 3 or self.shape[2] != 4 or self.dtype.name not in _CHANNELS:
            raise ValueError(f"{self.what}: no image of {self.dtype} with shape {self.shape}")
        _check_image(self.context.info, self.shape, self.what)
        pixels = cl.ImageFormat(cl.channel_order.RGBA, _CHANNELS[self.dtype.name])
        size2d = (self.shape[1], self.shape[0])
        return cl.create_image(self.context.handle, flags, pixels, shape=size2d, hostbuf=data)

    def seen_as(self, memory: Memory, nbytes: int | None = None) -> Tensor | Texels:
        """What a kernel gets whose argument lies in ``memory``: this, or its texels.

        ``nbytes`` is how much of it the kernel may read: a device has a longest image buffer, and a
        KV cache may be longer than what one kernel is for. Raises ``ValueError`` where the tensor
        cannot be seen so.
        """
        if memory == self.memory:
            return self
        if memory != "image1d":
            raise ValueError(f"{self.what} lies in {self.memory}, not in {memory}")
        size = self.nbytes if nbytes is None else min(nbytes, self.nbytes)
        if size not in self._texels:
            self._texels[size] = Texels(self, size)
        return self._texels[size]

    def write(self, data: NDArray[Any], *, blocking: bool = True) -> None:
        """Copy ``data`` (at most as long, same dtype) to the start; of an image whole rows."""
        data = np.ascontiguousarray(data)
        row = 1 if self.memory == "buffer" else int(np.prod(self.shape[1:], dtype=np.int64))
        if data.dtype != self.dtype or data.nbytes > self.nbytes or data.size % row:
            raise ValueError(f"{self.what}: can't write {data.dtype}{list(data.shape)} into it")
        if not data.nbytes:
            return
        place: dict[str, Any] = {}
        if self.memory != "buffer":
            place = {"origin": (0, 0), "region": (self.shape[1], data.size // row)}
        with self.context.errors(f"copy to {self.what}"):
            cl.enqueue_copy(self.context.queue, self.handle, data, is_blocking=blocking, **place)

    def read(self, count: int | None = None) -> NDArray[Any]:
        """The array on the host; of a buffer, on request, only the first ``count`` elements."""
        shape = self.shape if count is None else (count,)
        doing = f"copy from {self.what}"
        if count is not None:
            self._holds(count, doing)
        out = np.empty(shape, self.dtype)
        with self.context.errors(doing):
            if self.memory == "buffer":
                cl.enqueue_copy(self.context.queue, out, self.handle)
            else:
                region = (self.shape[1], self.shape[0])
                cl.enqueue_copy(self.context.queue, out, self.handle, origin=(0, 0), region=region)
        return out

    def copy(self, what: str | None = None) -> Tensor:
        """Another tensor on the same device with the same content."""
        twin = Tensor(self.context, self.shape, self.dtype, self.memory, what=what or self.what)
        try:
            twin._fill_from(self)
        except BaseException:
            twin.release()
            raise
        return twin

    def _fill_from(self, other: Tensor) -> None:
        """Copy all of a tensor of the same kind and shape."""
        with self.context.errors(f"copy of {other.what}"):
            if self.memory == "buffer":
                cl.enqueue_copy(self.context.queue, self.handle, other.handle)
            else:
                region = (self.shape[1], self.shape[0], 1)
                cl.enqueue_copy(
                    self.context.queue, self.handle, other.handle,
                    src_origin=(0, 0, 0), dest_origin=(0, 0, 0), region=region,
                )  # fmt: skip

    def move(self, start: int, count: int) -> None:
        """Copy ``count`` elements of this buffer from ``start`` to its beginning, on the device.

        The two ranges must not overlap: ``count <= start``, or nothing to do.
        """
        if start == 0:
            return
        if count > start:
            raise ValueError(f"{self.what}: {count} elements from {start} overlap their target")
        size = self.dtype.itemsize
        self._holds(start + count, f"copy within {self.what}")
        with self.context.errors(f"copy within {self.what}"):
            cl.enqueue_copy(
                self.context.queue, self.handle, self.handle,
                byte_count=count * size, src_offset=start * size,
            )  # fmt: skip

    def take(self, other: Tensor, count: int) -> None:
        """Copy the first ``count`` elements of another buffer of this device into this one."""
        other.belongs_to(self.context)
        doing = f"copy from {other.what} to {self.what}"
        self._holds(count, doing)
        other._holds(count, doing)
        with self.context.errors(doing):
            cl.enqueue_copy(
                self.context.queue, self.handle, other.handle,
                byte_count=count * self.dtype.itemsize,
            )  # fmt: skip

    def _holds(self, count: int, doing: str) -> None:
        """Raises :class:`LaunchError` unless there are ``count`` elements: what a buffer is filled
        up with is none of its content."""
        if count * self.dtype.itemsize > self.nbytes:
            raise LaunchError(f"{doing} failed: {self.what} has no {count} elements")

    def to(self, context: Context) -> Tensor:
        """An explicit copy on another device, through the host."""
        return context.upload(self.read(), memory=self.memory, what=self.what)

    def belongs_to(self, context: Context) -> None:
        """Raises :class:`DeviceError` if this tensor lies on another device."""
        if self.context is not context:
            raise DeviceError(
                f"{self.what} lies on {self.context.info.name}, not on {context.info.name}: "
                f"copy it with .to(context) first"
            )

    def release(self) -> None:
        """Give the memory back now; the tensor must not be used again."""
        if self.handle is not None:
            for texels in self._texels.values():
                texels.handle.release()
            self._texels.clear()
            self.handle.release()
            self.handle = None
            self.context.memory.give_back(self.nbytes)
