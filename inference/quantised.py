"""Float weights quantised while they are read, for models that come as floats.

Every matrix whose columns come in whole blocks is quantised, the embedding and the head included;
norms and biases stay what they are, and so does a matrix that the file has quantised already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError, UsageError
from ..kernels.coding import BLOCK
from ..kernels.formats import row_bytes
from ..kernels.quantise import QUANTISERS, quantise
from .tensors import FLOATS, WHOLE, TensorFiles, TensorInfo, as_float32

#: Numbers that a thread quantises at once.
_CHUNK = 1 << 20
#: NumPy computes outside the interpreter's lock.
_THREADS = 4


class QuantisedFiles:
    """A :class:`~.tensors.TensorFiles` over another one. Nothing is kept: a tensor is quantised
    each time it is read, a few rows at a time, so that no float32 copy of it is ever whole."""

    def __init__(self, source: TensorFiles, kind: str) -> None:
        """Raises ``UsageError`` for an unknown ``kind``, and where there is nothing to quantise."""
        if kind not in QUANTISERS:
            raise UsageError(f"quantize {kind!r}: {' or '.join(sorted(QUANTISERS))}")
        self.source, self.kind = source, kind
        self._quantised = {
            name: _coded(info, kind)
            for name, info in source.tensors.items()
            if info.dtype in FLOATS and len(info.shape) == 2 and info.shape[1] % BLOCK == 0
        }
        if not self._quantised:
            raise UsageError(
                f"{source.path} has nothing to quantise: no matrix of floats with a multiple of "
                f"{BLOCK} columns"
            )
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {**source.tensors, **self._quantised}
        )

    @property
    def path(self) -> Path:
        return self.source.path

    def place(self, name: str) -> tuple[Path, str]:
        return self.source.place(name)

    def digest(self) -> str:
        """That of the source, and the coding."""
        return hashlib.sha256(f"{self.source.digest()} {self.kind}".encode()).hexdigest()[:32]

    def raw(self, name: str, rows: slice = WHOLE) -> NDArray[Any]:
        """Blocks ``uint8 [rows, bytes per row]`` of what is quantised, else the source's view.

        Raises ``ModelError``, naming the tensor, for numbers that can't be quantised.
        """
        raw = self.source.raw(name, rows)
        if name not in self._quantised:
            return raw
        dtype, columns = self.source.tensors[name].dtype, raw.shape[1]
        blocks = np.empty((raw.shape[0], row_bytes(self.kind, columns)), np.uint8)
        step = max(1, _CHUNK // columns)

        def work(start: int) -> None:
            part = slice(start, start + step)
            blocks[part] = quantise(as_float32(dtype, raw[part]), self.kind).data

        with ThreadPoolExecutor(_THREADS) as pool:
            try:
                for _ in pool.map(work, range(0, len(raw), step)):
                    pass
            except ValueError as error:
                path, own = self.place(name)
                raise ModelError(f"{path}: tensor {own} can't be quantised: {error}") from error
        return blocks


def _coded(info: TensorInfo, kind: str) -> TensorInfo:
    rows, columns = info.shape
    return replace(info, dtype=kind, nbytes=rows * row_bytes(kind, columns))
