"""Safetensors files, memory-mapped: tensor views, nothing copied.

The layout is that of the safetensors format: the length of the header (64 bits, little-endian), a
JSON header with each tensor's dtype, shape and place, the tensors' bytes one behind the other
without a gap. Nothing in a file is trusted: a damaged or hostile one costs an error message and,
as headers are held to a size, little memory. Our own parser, because NumPy has no bfloat16 and the
``safetensors`` library therefore gives no view of one.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError, UnsupportedModel
from .files import map_file, parse_object
from .tensors import WHOLE, TensorInfo

#: The format's dtypes that a model's weights come in -> our name, NumPy's type (bf16 has none).
_DTYPES = {
    "F32": ("f32", "<f4"), "F16": ("f16", "<f2"), "BF16": ("bf16", "<u2"), "F64": ("f64", "<f8"),
    "I8": ("i8", "i1"), "I16": ("i16", "<i2"), "I32": ("i32", "<i4"), "I64": ("i64", "<i8"),
}  # fmt: skip
_NUMPY = dict(_DTYPES.values())
#: Others of the format, which have a tensor refused rather than called damaged.
_OTHERS = frozenset(
    "BOOL U8 U16 U32 U64 F8_E5M2 F8_E4M3 F8_E8M0 F4 F6_E2M3 F6_E3M2 C64 F8_E4M3FNUZ F8_E5M2FNUZ"
    .split()
)  # fmt: skip
#: The longest header read. A tensor takes about 120 bytes, a model of 126 layers 140 KB.
MAX_HEADER = 4 << 20
_MAX_DIMS = 8
_LENGTH = struct.Struct("<Q")


class SafetensorsFile:
    """A mapped file. Views from :meth:`raw` keep the mapping alive."""

    def __init__(
        self, path: Path, data: mmap.mmap, tensors: Mapping[str, TensorInfo], header_bytes: int
    ) -> None:
        self.path, self.size = path, len(data)
        self.tensors = tensors
        self._data, self._header_bytes = data, header_bytes

    @classmethod
    def open(cls, path: str | Path) -> SafetensorsFile:
        """Map ``path`` and read its header.

        Raises ``ModelError`` for a file that is missing, foreign, truncated or inconsistent,
        ``UnsupportedModel`` for a tensor of a dtype that clkiln does not know.
        """
        path = Path(path)
        data = map_file(path, wanted="download the model again")
        tensors, end = _Header(path, data).read()
        return cls(path, data, MappingProxyType(tensors), end)

    def raw(self, name: str, rows: slice = WHOLE) -> NDArray[Any]:
        """A read-only view of a tensor in its own shape (bf16 as uint16), or of some rows; nothing
        is copied. ``ModelError`` for an unknown name."""
        info = self.tensors.get(name)
        if info is None:
            raise ModelError(f"{self.path} has no tensor {name}")
        flat = np.frombuffer(self._data, np.uint8, info.nbytes, info.offset)
        return flat.view(_NUMPY[info.dtype]).reshape(info.shape)[rows]

    def digest(self) -> bytes:
        """sha256 of header and size; as cheap, and as blind to weights, as that of a GGUF file."""
        digest = hashlib.sha256(memoryview(self._data)[: self._header_bytes])
        digest.update(_LENGTH.pack(self.size))
        return digest.digest()


class _Header:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data = path, data

    def damaged(self, what: str) -> NoReturn:
        raise ModelError(f"{self.path} is damaged: {what}; download the model again")

    def read(self) -> tuple[dict[str, TensorInfo], int]:
        """Tensors by name, and the number of bytes before the first of them."""
        size = len(self.data)
        if size < _LENGTH.size + 2:
            self.damaged(f"{size} bytes are no safetensors file")
        (length,) = _LENGTH.unpack_from(self.data)
        start = _LENGTH.size + length
        if self.data[_LENGTH.size] != ord("{"):
            self.damaged(f"no safetensors header (it starts with {self.data[:9]!r})")
        if start > size:
            self.damaged(f"truncated in its header at byte {size} of {start}")
        if length > MAX_HEADER:
            raise UnsupportedModel(
                f"{self.path}: unsupported header of {length} bytes; clkiln reads {MAX_HEADER}"
            )
        header = parse_object(self.data[_LENGTH.size : start], str(self.path))
        header.pop("__metadata__", None)
        tensors = [self.tensor(name, entry, start) for name, entry in header.items()]
        self.hold_places(tensors, start)
        return {info.name: info for info in tensors}, start

    def tensor(self, name: str, entry: Any, start: int) -> TensorInfo:
        if not isinstance(entry, dict) or not name.isprintable():
            self.damaged(f"tensor {name!r} is not described")
        shape: Any = entry.get("shape")
        places: Any = entry.get("data_offsets")
        if not _is_naturals(shape) or len(shape) > _MAX_DIMS:
            self.damaged(f"tensor {name!r} has no shape")
        if not _is_naturals(places) or len(places) != 2:
            self.damaged(f"tensor {name!r} has no data_offsets")
        kind = entry.get("dtype")
        if not isinstance(kind, str) or (kind not in _DTYPES and kind not in _OTHERS):
            self.damaged(f"tensor {name!r} has the dtype {kind!r}, which the format lacks")
        if kind in _OTHERS:
            raise UnsupportedModel(f"{self.path}: unsupported dtype {kind} of tensor {name!r}")
        dtype, numpy_type = _DTYPES[kind]
        nbytes = prod(shape) * np.dtype(numpy_type).itemsize
        if 0 in shape or places[1] - places[0] != nbytes:
            self.damaged(f"tensor {name!r} of shape {shape} lies at bytes {places}")
        return TensorInfo(name, dtype, tuple(shape), start + places[0], nbytes)

    def hold_places(self, tensors: list[TensorInfo], start: int) -> None:
        """The format has tensors lie one behind the other up to the file's end."""
        free, before = start, "the header"
        for info in sorted(tensors, key=lambda info: info.offset):
            if info.offset != free:
                how = "overlap" if info.offset < free else "leave a gap"
                self.damaged(f"{before} and {info.name!r} {how}")
            free, before = info.offset + info.nbytes, repr(info.name)
            if free > len(self.data):
                self.damaged(
                    f"truncated: tensor {info.name!r} ends at byte {free} of {len(self.data)}"
                )
        if free < len(self.data):
            self.damaged(f"{len(self.data) - free} bytes behind the last tensor")


def _is_naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
