"""What the tensors of a model are, whatever kind of file holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from numpy.typing import NDArray


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

    def raw(self, name: str) -> NDArray[Any]:
        """A tensor's data: element types typed and in the tensor's own shape (bf16 as uint16),
        block types as ``uint8 [rows, bytes per row]``. ``ModelError`` for an unknown name."""
        ...
