"""Models that people run, as far as kernels see them: sizes, and the codings of their files.

Sizes are those of the models' published ``config.json``. Codings are those that llama.cpp's
quantisation types are made of: most matrices in one coding, some in one of more bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from ..errors import ModelError
from ..kernels.types import Array
from .config import ModelConfig, tensor_shapes
from .rope import Rope, RopeStyle
from .tensors import WHOLE, TensorInfo


@dataclass(frozen=True)
class Family:
    """A published model; see :class:`~.config.ModelConfig` for the fields."""

    name: str
    architecture: str
    n_layers: int
    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = True

    def config(self) -> ModelConfig:
        """The configuration that a file of it gives, but for what no kernel depends on."""
        llama = self.architecture == "llama"
        style: RopeStyle = "interleaved" if llama else "half"
        return ModelConfig(
            architecture=self.architecture,
            name=self.name,
            n_layers=self.n_layers,
            hidden=self.hidden,
            intermediate=self.intermediate,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            vocab=self.vocab,
            context_length=8192,
            rope=Rope(theta=10000.0, dim=self.head_dim, style=style),
            rms_eps=float(np.float32(1e-5 if llama else 1e-6)),  # files hold it so
            tied=self.tied,
            qkv_bias=self.architecture == "qwen2",
            output_bias=False,
            ffn_bias=False,
            qk_norm=self.architecture == "qwen3",
            temperature=None,
            top_k=None,
            top_p=None,
            digest="",
        )


FAMILIES = (
    Family("SmolLM2-135M", "llama", 30, 576, 1536, 9, 3, 64, 49152),
    Family("SmolLM2-360M", "llama", 32, 960, 2560, 15, 5, 64, 49152),
    Family("Qwen2.5-0.5B", "qwen2", 24, 896, 4864, 14, 2, 64, 151936),
    Family("Qwen3-0.6B", "qwen3", 28, 1024, 3072, 16, 8, 128, 151936),
    Family("Llama-3.2-1B", "llama", 16, 2048, 8192, 32, 8, 64, 128256),
    Family("Qwen2.5-1.5B", "qwen2", 28, 1536, 8960, 12, 2, 128, 151936),
    Family("SmolLM2-1.7B", "llama", 24, 2048, 8192, 32, 32, 64, 49152),
    Family("Qwen3-1.7B", "qwen3", 28, 2048, 6144, 16, 8, 128, 151936),
    Family("Qwen2.5-3B", "qwen2", 36, 2048, 11008, 16, 2, 128, 151936),
    Family("Llama-3.2-3B", "llama", 28, 3072, 8192, 24, 8, 128, 128256),
    Family("Qwen3-4B", "qwen3", 36, 2560, 9728, 32, 8, 128, 151936),
    Family("Qwen2.5-7B", "qwen2", 28, 3584, 18944, 28, 4, 128, 152064, tied=False),
    Family("Llama-3-8B", "llama", 32, 4096, 14336, 32, 8, 128, 128256, tied=False),
)


@dataclass(frozen=True)
class Mix:
    """How a file codes its matrices.

    ``linear`` is the coding of most, ``finer`` that of the values and the feed-forward output in
    every other layer or so, ``head`` that of the output head, which may be the embedding, too.
    ``share`` says how common such files are, relative to others.
    """

    name: str
    share: float
    linear: str
    finer: str
    head: str

    def dtype(self, name: str, shape: tuple[int, ...], config: ModelConfig) -> str:
        """The coding of the tensor ``name``; vectors are float32."""
        if len(shape) == 1:
            return "f32"
        coding = self.linear
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        if part == ("token_embd" if config.tied else "output"):
            coding = self.head
        elif part in ("attn_v", "ffn_down") and _finer(int(layer[4:]), config.n_layers):
            coding = self.finer
        return coding if shape[-1] % 256 == 0 else _ODD_COLUMNS.get(coding, coding)


#: What takes the place of a coding in blocks of 256 where the columns are no multiple of that.
_ODD_COLUMNS = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}

MIXES = (
    Mix("Q4_K_M", 4.0, "q4_k", "q6_k", "q6_k"),
    Mix("Q8_0", 2.0, "q8_0", "q8_0", "q8_0"),
    Mix("Q4_0", 2.0, "q4_0", "q4_0", "q6_k"),
    Mix("all Q4_0", 1.0, "q4_0", "q4_0", "q4_0"),
    Mix("Q4_1", 1.0, "q4_1", "q4_1", "q6_k"),
    Mix("F16", 1.0, "f16", "f16", "f16"),
    Mix("Q5_K_M", 1.0, "q5_k", "q6_k", "q6_k"),
    Mix("Q6_K", 1.0, "q6_k", "q6_k", "q6_k"),
)


def _finer(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


class Tensors:
    """The tensors of a file of ``config`` in ``mix``: names, shapes and codings, without data."""

    def __init__(self, config: ModelConfig, mix: Mix) -> None:
        self.config, self.mix = config, mix

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(name, self.mix.dtype(name, shape, self.config), shape, 0, prod(shape))
            for name, shape in tensor_shapes(self.config)
        }

    def codings(self) -> set[str]:
        return {info.dtype for info in self.tensors.values()}

    def raw(self, name: str, rows: slice = WHOLE) -> Array:
        """There is none."""
        raise ModelError(f"{self.config.name} is a list of sizes: {name} has no data")
