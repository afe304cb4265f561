"""What a model is, derived from its file: sizes, rotary style, norms, and nothing left unsaid.

The names are those of the GGUF specification. A file that asks for arithmetic that clkiln does
not do (a sliding window, scaled residuals, a tensor nobody here would apply) is refused by name:
a model that loads computes what its file says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeGuard

from ..errors import ModelError, UnsupportedModel
from ..kernels.weights import DTYPES
from .gguf import GGUFFile
from .rope import Rope, RopeScaling, RopeStyle, yarn_attention_factor
from .tensors import FLOATS, TensorFiles

#: Element types of linear weights and of the embedding that there are kernels for.
SUPPORTED_TYPES = DTYPES
#: Element types of norms, biases and rotary factors.
VECTOR_TYPES = FLOATS

#: Architecture -> which elements the rotary embedding pairs: neighbours (2i, 2i+1), as llama's
#: query and key rows are permuted when a GGUF is written, or the two halves (i, i + dim/2).
_ROPE_STYLES: dict[str, RopeStyle] = {"llama": "interleaved", "qwen2": "half", "qwen3": "half"}

#: Keys (after the architecture) that change the arithmetic, and the values that change nothing.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "expert_count": (0,),
    "attention.causal": (1,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.dimension_sections": (0,),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_ext_factor": (-1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "use_parallel_residual": (0,),
}

#: Tensors that old converters wrote and that carry nothing a decoder reads.
_IGNORED_SUFFIXES = (".attn_rot_embd.weight", ".rope.freqs")
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a decoder. A linear weight's shape is (outputs, inputs).

    ``qk_norm``: each head of q and of k goes through an RMSNorm of its own before the rotary
    embedding. ``qkv_bias``, ``output_bias``, ``ffn_bias``: the linear layers into the
    attention, out of it, and all three of the feed-forward network add one.
    ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``repeat_penalty`` and ``repeat_last_n`` are
    the file's own sampling defaults, or None.
    """

    architecture: str
    name: str
    n_layers: int
    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    context_length: int
    rope: Rope
    rms_eps: float
    tied: bool
    qkv_bias: bool
    output_bias: bool
    ffn_bias: bool
    qk_norm: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    digest: str
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def turned_rows(self) -> bool:
        """Whether the rows of q and k are put in another order when they are read.

        Rows i and i + rope.dim / 2 of a head become neighbours, as kernels that fuse the rotary
        embedding need them. Scores don't change, as q and k change alike; norms of single heads
        would have to change with them.
        """
        return self.rope.style == "half" and not self.qk_norm

    @property
    def rope_style(self) -> RopeStyle:
        """Which values of a head form a pair, as the rows of q and k are read."""
        return "interleaved" if self.turned_rows else self.rope.style

    @classmethod
    def from_gguf(cls, file: GGUFFile, source: TensorFiles | None = None) -> ModelConfig:
        """Read the configuration and check every tensor of ``source`` (the file) against it.

        Raises ``UnsupportedModel`` for a sound file with something clkiln lacks, ``ModelError``
        for a key or tensor that is missing or contradicts another.
        """
        return _Builder(file).build(source or file)


class _Builder:
    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = self.text("general.architecture")
        if self.architecture not in _ROPE_STYLES:
            known = ", ".join(_ROPE_STYLES)
            self.unsupported(f"architecture {self.architecture!r}; clkiln has {known}")

    def build(self, source: TensorFiles) -> ModelConfig:
        self.refuse_other_arithmetic()
        heads = self.size("attention.head_count")
        hidden = self.size("embedding_length")
        head_dim = self.head_dim(hidden, heads)
        tensors = self.file.tensors
        config = ModelConfig(
            architecture=self.architecture,
            name=self.text("general.name", self.file.path.stem),
            n_layers=self.size("block_count"),
            hidden=hidden,
            intermediate=self.size("feed_forward_length"),
            n_heads=heads,
            n_kv_heads=self.size("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab=self.vocab(),
            context_length=self.size("context_length"),
            rope=self.rope(head_dim),
            rms_eps=self.number("attention.layer_norm_rms_epsilon"),
            tied="output.weight" not in tensors,
            qkv_bias="blk.0.attn_q.bias" in tensors,
            output_bias="blk.0.attn_output.bias" in tensors,
            ffn_bias="blk.0.ffn_down.bias" in tensors,
            qk_norm=self.architecture == "qwen3",
            temperature=self.default("temp"),
            top_k=None if (top_k := self.default("top_k")) is None else int(top_k),
            top_p=self.default("top_p"),
            digest=source.digest(),
            min_p=self.default("min_p"),
            repeat_penalty=self.default("penalty_repeat"),
            repeat_last_n=None if (last := self.default("penalty_last_n")) is None else int(last),
        )
        self.refuse_other_scale(config)
        check_config(config, source)
        return config

    # -- errors ------------------------------------------------------------------------------

    def wrong(self, what: str) -> NoReturn:
        _wrong(self.file.path, what)

    def unsupported(self, what: str) -> NoReturn:
        _unsupported(self.file.path, what)

    # -- typed look-ups ----------------------------------------------------------------------

    def text(self, key: str, default: str | None = None) -> str:
        value = self.file.metadata.get(key, default)
        if not isinstance(value, str):
            self.wrong(f"{key} is missing or no text")
        return value

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer; an array, one for each layer, counts if all are the same."""
        value = self.file.metadata.get(self.key(name), default)
        if getattr(value, "ndim", 0) == 1 and value.size:
            if (value != value[0]).any():
                self.unsupported(f"{self.key(name)} that differs between layers")
            value = value[0].item()
        if type(value) is not int or value <= 0:
            self.wrong(f"{self.key(name)} is {value!r}, not a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.file.metadata.get(self.key(name), default)
        if not is_number(value) or not math.isfinite(value) or value <= 0:
            self.wrong(f"{self.key(name)} is {value!r}, not a positive number")
        return float(value)

    def option(self, name: str, default: float = 0) -> float:
        """A number or flag that is usually absent; anything else is an option clkiln lacks."""
        value = self.file.metadata.get(self.key(name), default)
        if not isinstance(value, (bool, int, float)):
            self.unsupported(f"model option {self.key(name)} (not one number)")
        return value

    def default(self, name: str) -> float | None:
        return sampling_default(name, self.file.metadata.get(f"general.sampling.{name}"))

    # -- derived values ----------------------------------------------------------------------

    def head_dim(self, hidden: int, heads: int) -> int:
        default = hidden // heads if hidden % heads == 0 else None
        keys = self.size("attention.key_length", default)
        values = self.size("attention.value_length", default)
        if keys != values:
            self.unsupported(f"heads whose keys ({keys}) and values ({values}) differ in length")
        return keys

    def vocab(self) -> int:
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            self.wrong("the tensor token_embd.weight is missing or no matrix")
        tokens = self.file.metadata.get("tokenizer.ggml.tokens")
        # The embedding may be padded beyond them.
        if isinstance(tokens, tuple) and len(tokens) > embedding.shape[0]:
            self.wrong(f"{len(tokens)} tokens, but {embedding.shape[0]} rows of token_embd.weight")
        return embedding.shape[0]

    def rope(self, head_dim: int) -> Rope:
        kind, factor = self.rope_scaling()
        attention = self.factor("rope.scaling.attn_factor", 1.0)
        yarn = {}
        if kind == "yarn":
            attention *= yarn_attention_factor(factor)
            attention *= self.factor("rope.scaling.yarn_attn_factor", 1.0)
            for end, default in (("fast", 32.0), ("slow", 1.0)):
                yarn[f"beta_{end}"] = self.number(f"rope.scaling.yarn_beta_{end}", default)
        trained = self.size("rope.scaling.original_context_length", self.size("context_length"))
        return Rope(
            theta=self.number("rope.freq_base", 10000.0),
            dim=self.size("rope.dimension_count", head_dim),
            style=_ROPE_STYLES[self.architecture],
            scaling=kind,
            factor=factor,
            original_context=trained,
            attention_factor=attention,
            file_factors=_ROPE_FACTORS in self.file.tensors,
            **yarn,
        )

    def rope_scaling(self) -> tuple[RopeScaling, float]:
        """How the file stretches the context, and by how much. Llama 3's way is in its factors."""
        kind = self.file.metadata.get(self.key("rope.scaling.type"), "linear")
        if kind not in ("none", "linear", "yarn"):
            self.unsupported(f"rotary scaling {kind!r}; clkiln has none, linear and yarn")
        factor = self.factor("rope.scaling.factor", self.factor("rope.scale_linear", 1.0))
        return ("none", 1.0) if kind == "none" or factor == 1 else (kind, factor)

    def factor(self, name: str, default: float) -> float:
        """A positive number; converters write 0 for "none", which is 1."""
        value = self.file.metadata.get(self.key(name), default)
        return 1.0 if is_number(value) and value == 0 else self.number(name, default)

    # -- checks ------------------------------------------------------------------------------

    def refuse_other_arithmetic(self) -> None:
        for name, neutral in _NEUTRAL.items():
            value = self.option(name, neutral[0])
            if value not in neutral:
                self.unsupported(f"model option {self.key(name)} = {value}")
        window = self.option("attention.sliding_window")
        # A window as long as the context hides nothing: it is off.
        if window and window < self.size("context_length"):
            self.unsupported(f"sliding-window attention (a window of {window:.0f} tokens)")

    def refuse_other_scale(self, config: ModelConfig) -> None:
        scale = self.option("attention.scale")
        natural = 1 / math.sqrt(config.head_dim)
        if scale != 0 and not math.isclose(scale, natural, rel_tol=1e-6):
            self.unsupported(f"model option {self.key('attention.scale')} = {scale}")


def check_config(config: ModelConfig, source: TensorFiles) -> None:
    """Hold a configuration against itself and against every tensor of its model.

    Raises ``UnsupportedModel`` for a tensor that nothing would read or whose type clkiln lacks,
    ``ModelError`` for one that is missing or has another shape.
    """
    path = source.path
    if config.n_heads % config.n_kv_heads:
        _wrong(path, f"{config.n_heads} heads over {config.n_kv_heads} key-value heads")
    if config.head_dim % 2:
        _unsupported(path, f"heads of {config.head_dim} values; clkiln has even lengths")
    if config.rope.dim % 2 or config.rope.dim > config.head_dim:
        _wrong(path, f"{config.rope.dim} rotary dimensions in heads of {config.head_dim}")
    expected = set()
    for name, shape in tensor_shapes(config):
        expected.add(name)
        _check_tensor(source, name, shape)
    if config.tied:
        # A copy of the embedding that some files hold; the configuration says which one counts.
        expected.add("output.weight")
    for name in source.tensors:
        if name not in expected and not name.endswith(_IGNORED_SUFFIXES):
            file, own = source.place(name)
            _unsupported(file, f"tensor {own}: a {config.architecture} model has no use for it")


def _check_tensor(source: TensorFiles, name: str, shape: tuple[int, ...]) -> None:
    info, (file, own) = source.tensors.get(name), source.place(name)
    if info is None:
        _wrong(file, f"the tensor {own} is missing")
    if info.shape != shape:
        _wrong(file, f"the tensor {own} has the shape {info.shape}, not {shape}")
    types = SUPPORTED_TYPES if len(shape) == 2 else VECTOR_TYPES
    if info.dtype not in types:
        _unsupported(file, f"type {info.dtype} of tensor {own}; clkiln has {', '.join(types)}")


def _wrong(path: Path, what: str) -> NoReturn:
    raise ModelError(f"{path} is inconsistent: {what}")


def _unsupported(path: Path, what: str) -> NoReturn:
    raise UnsupportedModel(f"{path}: unsupported {what}")


def is_number(value: object) -> TypeGuard[int | float]:
    # bool is an int, and no number here.
    return type(value) in (int, float)


def sampling_default(name: str, value: object) -> float | None:
    """A model's own advice on sampling, under GGUF's name; nonsense counts as none."""
    if not is_number(value) or not math.isfinite(value):
        return None
    sound = {
        "top_p": 0 < value <= 1,
        "min_p": 0 <= value <= 1,
        "penalty_repeat": value > 0,
        "penalty_last_n": value >= -1,
    }
    return float(value) if sound.get(name, value >= 0) else None


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor that the decoder reads, with its shape; matrices are (outputs, inputs)."""
    hidden, inner, q_dim, kv_dim = config.hidden, config.intermediate, config.q_dim, config.kv_dim
    yield "token_embd.weight", (config.vocab, hidden)
    yield "output_norm.weight", (hidden,)
    if not config.tied:
        yield "output.weight", (config.vocab, hidden)
    if config.rope.file_factors:
        yield _ROPE_FACTORS, (config.rope.dim // 2,)
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,),
        "attn_q.weight": (q_dim, hidden),
        "attn_k.weight": (kv_dim, hidden),
        "attn_v.weight": (kv_dim, hidden),
        "attn_output.weight": (hidden, q_dim),
        "ffn_norm.weight": (hidden,),
        "ffn_gate.weight": (inner, hidden),
        "ffn_up.weight": (inner, hidden),
        "ffn_down.weight": (hidden, inner),
    }
    if config.qkv_bias:
        layer |= {"attn_q.bias": (q_dim,), "attn_k.bias": (kv_dim,), "attn_v.bias": (kv_dim,)}
    if config.output_bias:
        layer |= {"attn_output.bias": (hidden,)}
    if config.ffn_bias:
        layer |= {"ffn_gate.bias": (inner,), "ffn_up.bias": (inner,), "ffn_down.bias": (hidden,)}
    if config.qk_norm:
        layer |= {f"attn_{part}_norm.weight": (config.head_dim,) for part in "qk"}
    for index in range(config.n_layers):
        for name, shape in layer.items():
            yield f"blk.{index}.{name}", shape
