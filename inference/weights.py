"""A model's weights under the names that the graph uses, from the files' own memory map."""

from __future__ import annotations

import numpy as np

from ..kernels.types import Array
from ..kernels.weights import Matrix, common_dtype, concatenate
from .config import ModelConfig
from .tensors import TensorSource, as_float32


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
        """The matrix ``name``: a view of the file where it is one tensor of the file."""
        matrices = []
        for part in self.parts(name):
            info = self.source.tensors[f"{part}.weight"]
            raw = self._turned(part, self.source.raw(f"{part}.weight"))
            matrices.append(Matrix(info.dtype, info.shape[1], raw))
        return concatenate(matrices)

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
        if not (self.config.turned_rows and part.endswith((".attn_q", ".attn_k"))):
            return rows
        dim, turning = self.config.head_dim, self.config.rope.dim
        order = np.arange(dim)
        order[:turning] = np.arange(turning).reshape(2, -1).T.reshape(-1)
        return rows.reshape(-1, dim, *rows.shape[1:])[:, order].reshape(rows.shape)

    def rope_table(self, positions: int) -> Array:
        """float32 ``[positions, rope.dim / 2, 2]``: see :meth:`~.rope.Rope.table`."""
        rope = self.config.rope
        factors = self._floats("rope_freqs.weight") if rope.file_factors else None
        return rope.table(positions, factors)
