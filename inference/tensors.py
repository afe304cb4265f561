"""What the tensors of a model are, whatever kind of file holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

#: Element types of floats.
FLOATS = ("f32", "f16", "bf16")
#: All rows of a tensor.
WHOLE = slice(None)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: ``shape`` in NumPy order (rows, columns), ``offset`` from byte 0."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def rows(self) -> int:
        """Rows of the tensor seen as a matrix; 1 for a vector."""
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.nbytes // self.rows


class TensorSource(Protocol):
    """The tensors of one model under GGUF's names (``blk.0.attn_q.weight``)."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def raw(self, name: str, rows: slice = WHOLE) -> NDArray[Any]:
        """A tensor's data: element types typed and in the tensor's own shape (bf16 as uint16),
        block types as ``uint8 [rows, bytes per row]``; of all rows or some. ``ModelError`` for an
        unknown name."""
        ...


class TensorFiles(TensorSource, Protocol):
    """A source that lies on disk."""

    @property
    def path(self) -> Path: ...

    def place(self, name: str) -> tuple[Path, str]:
        """The file that holds a tensor, or that lacks it, and the tensor's name there."""
        ...

    def digest(self) -> str:
        """Identity in 32 hex digits, cheap: what differs in the numbers of weights only is one."""
        ...


def as_float32(dtype: str, raw: NDArray[Any]) -> NDArray[np.float32]:
    """Floats as a :class:`TensorSource` gives them, as float32, which is exact; always a copy."""
    if dtype == "bf16":
        # The upper half of a float32.
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)
