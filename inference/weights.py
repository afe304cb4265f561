"""A model's weights under the names that the graph uses, from the files' own memory map."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ..kernels.types import Array
from ..kernels.weights import Matrix, common_dtype, concatenate
from .config import ModelConfig
from .tensors import TensorSource, as_float32

_PIECE = re.compile(r"(?P<whole>.*)\[(?P<start>\d+):(?P<stop>\d+)\]")


def piece_name(whole: str, start: int, stop: int) -> str:
    """The name of some rows of the weight ``whole``, as :meth:`Weights.matrix` takes it."""
    return f"{whole}[{start}:{stop}]"


class Weights:
    """Logical weights. ``qkv`` and ``gate_up`` are their parts stacked; nothing is kept."""

    def __init__(self, source: TensorSource, config: ModelConfig) -> None:
        self.source, self.config = source, config

    def parts(self, name: str) -> list[str]:
        """The tensors of the file whose rows, one below the other, are the weight ``name``."""
        layer, _, last = name.rpartition(".")
        stacked = {
            "qkv": ("attn_q", "attn_k", "attn_v"),
            "gate_up": ("ffn_gate", "ffn_up"),
        }.get(last, (last,))
        return [f"{layer}.{part}" if layer else part for part in stacked]

    def dtype(self, name: str) -> str:
        """The dtype of a matrix; parts of several dtypes take the smallest that holds all."""
        return common_dtype(
            self.source.tensors[f"{part}.weight"].dtype for part in self.parts(name)
        )

    def matrix(self, name: str) -> Matrix:
        """The matrix ``name``: a view of the file where it is one tensor of the file.

        Of a :func:`piece_name` only its rows are read. Those of ``gate_up`` are rows of both.
        """
        match = _PIECE.fullmatch(name)
        if not match:
            whole, ranges = name, [(part, 0, self._rows(part)) for part in self.parts(name)]
        else:
            whole = match["whole"]
            ranges = [*self._ranges(whole, int(match["start"]), int(match["stop"]))]
        return concatenate([self._part(*some) for some in ranges], self.dtype(whole))

    def _ranges(self, name: str, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """The parts of a weight that rows ``start`` to ``stop`` lie in, and which of theirs."""
        if name.endswith("gate_up"):
            yield from ((part, start, stop) for part in self.parts(name))
            return
        for part in self.parts(name):
            rows = self._rows(part)
            if start < rows and stop > 0:
                yield part, max(start, 0), min(stop, rows)
            start, stop = start - rows, stop - rows

    def _rows(self, part: str) -> int:
        return self.source.tensors[f"{part}.weight"].rows

    def _part(self, part: str, start: int, stop: int) -> Matrix:
        """Rows ``start`` to ``stop`` of a tensor, which turn in whole heads."""
        info = self.source.tensors[f"{part}.weight"]
        span = self.config.head_dim if self._turns(part) else 1
        first = start // span * span
        rows = slice(first, -(-stop // span) * span)
        raw = self._turned(part, self.source.raw(f"{part}.weight", rows))
        return Matrix(info.dtype, info.shape[1], raw[start - first : stop - first])

    def vector(self, name: str) -> Array:
        """A norm's weights or a bias (``blk.0.qkv.bias``) as float32."""
        layer, _, kind = name.rpartition(".")
        if kind != "bias":
            return self._floats(f"{name}.weight")
        biases = [self._turned(p, self._floats(f"{p}.bias")) for p in self.parts(layer)]
        return np.concatenate(biases)

    def _floats(self, name: str) -> Array:
        return as_float32(self.source.tensors[name].dtype, self.source.raw(name))

    def _turned(self, part: str, rows: Array) -> Array:
        """Rows of q or k in the order of :attr:`~.config.ModelConfig.turned_rows`."""
        if not self._turns(part):
            return rows
        dim, turning = self.config.head_dim, self.config.rope.dim
        order = np.arange(dim)
        order[:turning] = np.arange(turning).reshape(2, -1).T.reshape(-1)
        return rows.reshape(-1, dim, *rows.shape[1:])[:, order].reshape(rows.shape)

    def _turns(self, part: str) -> bool:
        return self.config.turned_rows and part.endswith((".attn_q", ".attn_k"))

    def rope_table(self, positions: int) -> Array:
        """float32 ``[positions, rope.dim / 2, 2]``: see :meth:`~.rope.Rope.table`."""
        rope = self.config.rope
        factors = self._floats("rope_freqs.weight") if rope.file_factors else None
        return rope.table(positions, factors)
