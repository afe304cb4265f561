"""GGUF files, memory-mapped: metadata and tensor views, nothing copied that need not be.

The layout is that of the GGUF specification, versions 2 and 3, little-endian: a header (magic,
version, counts), key-value pairs, tensor descriptions, padding up to the alignment, tensor data.
Nothing in a file is trusted: counts and lengths are held against the file's size before anything
is allocated from them, so a damaged file costs an error message and no memory.
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
from .files import map_file
from .tensors import WHOLE, TensorInfo

#: ggml type number -> (name, elements in a block, bytes of a block).
_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22), 7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34),
    10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110), 12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50), 20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136), 24: ("i8", 1, 1), 25: ("i16", 1, 2),
    26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8), 29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66), 39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36), 41: ("q1_0", 128, 18),
}  # fmt: skip

#: How ``raw`` shows the types whose elements NumPy can address; bf16 has no NumPy type.
_NUMPY = {
    "f32": "<f4", "f16": "<f2", "bf16": "<u2", "f64": "<f8",
    "i8": "i1", "i16": "<i2", "i32": "<i4", "i64": "<i8",
}  # fmt: skip

#: Metadata value type -> struct format; 8 is a string, 9 an array.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9

_MAGIC = b"GGUF"
_MAX_DIMS = 4
# The smallest a key-value pair and a tensor description can be, to hold counts against the file.
_MIN_PAIR, _MIN_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
_U64 = struct.Struct("<Q")


class GGUFFile:
    """A mapped GGUF file. Views from :meth:`raw` keep the mapping alive, also after ``close``."""

    def __init__(
        self,
        path: Path,
        data: mmap.mmap,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        header_bytes: int,
    ) -> None:
        self.path = path
        self.size = len(data)
        self.metadata = metadata
        self.tensors = tensors
        self.header_bytes = header_bytes
        self._data: mmap.mmap | None = data

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Map ``path`` and read its header.

        Metadata arrays are tuples of strings, or read-only NumPy arrays of numbers. Raises
        ``ModelError`` for a file that is missing, foreign, truncated or inconsistent, and
        ``UnsupportedModel`` for a version, byte order or tensor type that clkiln cannot read.
        """
        path = Path(path)
        data = map_file(path, wanted="pass a .gguf file or a model directory")
        reader = _Reader(path, data)
        metadata, tensors, end = reader.header()
        return cls(path, data, MappingProxyType(metadata), MappingProxyType(tensors), end)

    def raw(self, name: str, rows: slice = WHOLE) -> NDArray[Any]:
        """A read-only view of a tensor's data in the file, or of some rows; nothing is copied.

        Element types (f32, f16, bf16 as uint16, integers) come typed in the tensor's own shape;
        block types as ``uint8 [rows, bytes per row]``. Raises ``ModelError`` for an unknown name.
        """
        if self._data is None:
            raise ModelError(f"{self.path} was closed; open it again to read {name}")
        info = self.tensors.get(name)
        if info is None:
            raise ModelError(f"{self.path} has no tensor {name}")
        flat = np.frombuffer(self._data, np.uint8, info.nbytes, info.offset)
        if info.dtype in _NUMPY:
            return flat.view(_NUMPY[info.dtype]).reshape(info.shape)[rows]
        return flat.reshape(info.rows, info.row_bytes)[rows]

    def place(self, name: str) -> tuple[Path, str]:
        return self.path, name

    def digest(self) -> str:
        """Identity of the file in 32 hex digits: sha256 of its header and its size (cheap).

        Two files with one header and one size but different weights share it: good for labels and
        for asking what was measured, not for caching anything made from the weights.
        """
        if self._data is None:
            raise ModelError(f"{self.path} was closed; open it again to identify it")
        digest = hashlib.sha256(memoryview(self._data)[: self.header_bytes])
        digest.update(_U64.pack(self.size))
        return digest.hexdigest()[:32]

    def close(self) -> None:
        """Let go of the mapping; it goes away with the last view of it."""
        self._data = None

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Reader:
    """Walks the header of a mapped file; every read is checked against the file's end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.end = len(data)
        self.pos = 0

    def header(self) -> tuple[dict[str, Any], dict[str, TensorInfo], int]:
        """Metadata, tensors, and the number of bytes that the header takes."""
        magic = self.data[:4]
        if magic != _MAGIC:
            raise ModelError(f"{self.path} is not a GGUF file (it starts with {magic!r})")
        self.pos = 4
        version = self.scalar("<I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            what = "is big-endian" if swapped else f"has GGUF version {version}"
            raise UnsupportedModel(f"{self.path} {what}; clkiln reads little-endian GGUF 2 and 3")
        tensor_count, pair_count = self.scalar("<Q"), self.scalar("<Q")
        self.claim(tensor_count * _MIN_TENSOR + pair_count * _MIN_PAIR)
        metadata = self.pairs(pair_count)
        descriptions = [self.description() for _ in range(tensor_count)]
        header_bytes = self.pos
        tensors = self.place(descriptions, metadata.get("general.alignment", 32))
        return metadata, tensors, header_bytes

    # -- errors ------------------------------------------------------------------------------

    def damaged(self, what: str) -> NoReturn:
        raise ModelError(f"{self.path} is damaged: {what}; download the model again")

    def truncated(self, pos: int) -> NoReturn:
        self.damaged(f"truncated in its header at byte {pos} of {self.end}")

    def claim(self, size: int) -> None:
        """Refuse ``size`` bytes that the rest of the file does not have."""
        if size > self.end - self.pos:
            self.truncated(self.pos)

    # -- values ------------------------------------------------------------------------------

    def scalar(self, form: str) -> Any:
        self.claim(struct.calcsize(form))
        (value,) = struct.unpack_from(form, self.data, self.pos)
        self.pos += struct.calcsize(form)
        return value

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> tuple[str, ...]:
        """``count`` strings. Vocabularies have 100,000 and more of them: one tight loop."""
        self.claim(8 * count)
        data, pos, end, length_at = self.data, self.pos, self.end, _U64.unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                start = pos + 8
                pos = start + length_at(data, pos)[0]
                if pos > end:
                    self.truncated(start)
                found.append(data[start:pos].decode())
        except struct.error:
            self.truncated(pos)
        except UnicodeDecodeError:
            self.damaged(f"a string before byte {pos} is not UTF-8")
        self.pos = pos
        return tuple(found)

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            self.damaged(f"unknown metadata type {kind} before byte {self.pos}")
        return self.scalar(_SCALARS[kind])

    def array(self) -> tuple[str, ...] | NDArray[Any]:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if kind == _STRING:
            return self.strings(count)
        if kind not in _SCALARS:
            self.damaged(f"an array of metadata type {kind} before byte {self.pos}")
        dtype = np.dtype(_SCALARS[kind])
        self.claim(count * dtype.itemsize)
        # A bool is one byte of any value, which a NumPy bool may not be: read it as a number.
        stored = np.dtype(np.uint8) if dtype == np.bool_ else dtype
        values = np.frombuffer(self.data, stored, count, self.pos).astype(dtype)
        values.flags.writeable = False
        self.pos += values.nbytes
        return values

    def pairs(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self.string()
            if key in metadata:
                self.damaged(f"metadata key {key!r} is there twice")
            metadata[key] = self.value(self.scalar("<I"))
        return metadata

    # -- tensors -----------------------------------------------------------------------------

    def description(self) -> TensorInfo:
        """One tensor's description; its offset counts from the start of the data still."""
        name = self.string()
        n_dims = self.scalar("<I")
        if not 1 <= n_dims <= _MAX_DIMS:
            self.damaged(f"tensor {name!r} has {n_dims} dimensions")
        # GGUF stores the fastest dimension first, NumPy names it last.
        shape = tuple(reversed([self.scalar("<Q") for _ in range(n_dims)]))
        kind, offset = self.scalar("<I"), self.scalar("<Q")
        if kind not in _TYPES:
            raise UnsupportedModel(
                f"{self.path}: tensor {name} has type {kind}, which clkiln does not know"
            )
        dtype, block, block_bytes = _TYPES[kind]
        if 0 in shape or shape[-1] % block:
            self.damaged(f"tensor {name!r} of type {dtype} cannot have the shape {shape}")
        nbytes = prod(shape) // block * block_bytes
        return TensorInfo(name, dtype, shape, offset, nbytes)

    def place(self, descriptions: list[TensorInfo], alignment: Any) -> dict[str, TensorInfo]:
        """Turn offsets into positions in the file; every tensor has a place of its own."""
        if type(alignment) is not int or alignment <= 0 or alignment % 8:
            self.damaged(f"alignment {alignment!r} is not a multiple of 8")
        start = -(-self.pos // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        free, before = start, ""
        for info in sorted(descriptions, key=lambda info: info.offset):
            if info.offset % alignment:
                self.damaged(f"tensor {info.name!r} is not aligned to {alignment} bytes")
            position = start + info.offset
            if position < free:
                self.damaged(f"tensors {before!r} and {info.name!r} overlap")
            free, before = position + info.nbytes, info.name
            if free > self.end:
                self.damaged(f"truncated: tensor {info.name!r} ends at byte {free} of {self.end}")
            tensors[info.name] = TensorInfo(
                info.name, info.dtype, info.shape, position, info.nbytes
            )
        if len(tensors) < len(descriptions):
            names = [info.name for info in descriptions]
            self.damaged(f"tensor {next(n for n in names if names.count(n) > 1)!r} is there twice")
        return {info.name: tensors[info.name] for info in descriptions}
