"""What a model is, derived from a directory's ``config.json``; as strict as with GGUF files.

The names are those of the ``transformers`` library. What would change the arithmetic and is not
done here is refused by name; what only trains or caches is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from ..errors import ModelError, UnsupportedModel
from .config import ModelConfig, check_config, is_number, sampling_default
from .hf import HFDirectory
from .rope import Rope, RopeScaling, yarn_attention_factor
from .tensors import TensorFiles

#: model_type -> the class that its weights were saved from.
_CLASSES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip

#: Keys that change the arithmetic, and the values that change nothing (or that are absent).
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "alibi": (False,),
    "attention_multiplier": (1,),
    "attn_logit_softcapping": (),
    "clip_qkv": (),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "n_routed_experts": (0,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "partial_rotary_factor": (1,),
    "qk_layernorm": (False,),
    "residual_multiplier": (1,),
    "scale_embeddings": (False,),
    "use_mrope": (False,),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
}
#: Names of sampling options there -> in a GGUF file.
_SAMPLING = {
    "temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}  # fmt: skip
_THETA = 10000.0


def read_config(directory: HFDirectory, source: TensorFiles | None = None) -> ModelConfig:
    """Read the configuration and check every tensor of ``source`` (the directory) against it.

    Raises ``UnsupportedModel`` for a sound directory with something clkiln lacks, ``ModelError``
    for a key or tensor that is missing or contradicts another.
    """
    return _Builder(directory).build(source or directory)


class _Keys:
    """Typed look-ups in ``config.json`` or an object in it; an absent key and null are one."""

    def __init__(self, directory: HFDirectory, values: Mapping[str, Any], prefix: str = "") -> None:
        self.directory, self.values, self.prefix = directory, values, prefix
        self.path = directory.path / "config.json"

    def wrong(self, what: str) -> NoReturn:
        raise ModelError(f"{self.path} is inconsistent: {what}")

    def unsupported(self, what: str) -> NoReturn:
        raise UnsupportedModel(f"{self.path}: unsupported {what}")

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if type(value) is not int or not 0 < value < 1 << 31:
            self.wrong(f"{self.prefix}{name} is {value!r}, not a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        # Integers without an end are no floats.
        if not is_number(value) or not 0 < value < 1e300:
            self.wrong(f"{self.prefix}{name} is {value!r}, not a positive number")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.wrong(f"{self.prefix}{name} is {value!r}, not true or false")
        return value


class _Builder(_Keys):
    def __init__(self, directory: HFDirectory) -> None:
        super().__init__(directory, directory.config)
        self.architecture = self.get("model_type")
        if not isinstance(self.architecture, str) or self.architecture not in _CLASSES:
            known = ", ".join(_CLASSES)
            self.unsupported(f"architecture {self.architecture!r}; clkiln has {known}")

    def build(self, source: TensorFiles) -> ModelConfig:
        self.refuse_other_arithmetic()
        heads, hidden = self.size("num_attention_heads"), self.size("hidden_size")
        head_dim = self.head_dim(hidden, heads)
        bias, qwen2 = self.flag("attention_bias"), self.architecture == "qwen2"
        rope = self.rope(head_dim)
        config = ModelConfig(
            architecture=self.architecture,
            name=self.directory.name,
            n_layers=self.size("num_hidden_layers"),
            hidden=hidden,
            intermediate=self.size("intermediate_size"),
            n_heads=heads,
            n_kv_heads=self.size("num_key_value_heads", heads),
            head_dim=head_dim,
            vocab=self.size("vocab_size"),
            context_length=self.context_length(rope),
            rope=rope,
            rms_eps=self.number("rms_norm_eps"),
            tied=self.tied(),
            qkv_bias=qwen2 or bias,
            output_bias=bias and not qwen2,
            ffn_bias=self.architecture == "llama" and self.flag("mlp_bias"),
            qk_norm=self.architecture == "qwen3",
            digest=source.digest(),
            **self.sampling(),
        )
        check_config(config, source)
        return config

    # -- derived values ----------------------------------------------------------------------

    def head_dim(self, hidden: int, heads: int) -> int:
        if self.architecture == "qwen3":
            return self.size("head_dim", 128)
        return self.size("head_dim", hidden // heads if hidden % heads == 0 else None)

    def tied(self) -> bool:
        """Whether the head is the embedding; where nothing is said, if there is no other head."""
        return self.flag("tie_word_embeddings", "output.weight" not in self.directory.tensors)

    def context_length(self, rope: Rope) -> int:
        """The positions that the model knows. Those who turn YaRN on often leave the number of
        before, so what it stretches to counts where that is more."""
        stated = self.size("max_position_embeddings")
        stretched = rope.original_context * rope.factor if rope.scaling == "yarn" else 0
        if stretched >= 1 << 31:
            self.wrong(f"rope_scaling.factor is {rope.factor:.3g}")
        return max(stated, int(stretched))

    def rope(self, head_dim: int) -> Rope:
        """From ``rope_parameters``, or ``rope_scaling`` and ``rope_theta`` of older files."""
        values = self.get("rope_scaling") or self.get("rope_parameters") or {}
        if not isinstance(values, dict):
            self.wrong(f"rope_scaling is {values!r}, not an object")
        if any(isinstance(value, dict) for value in values.values()):
            self.unsupported("rotary embedding that differs between layers")
        keys = _Keys(self.directory, values, "rope_scaling.")
        keys.path = self.path
        if keys.number("partial_rotary_factor", 1) != 1:
            self.unsupported("model option partial_rotary_factor")
        theta = keys.number("rope_theta", self.number("rope_theta", _THETA))
        kind = keys.get("rope_type", keys.get("type", "default"))
        plain = Rope(theta, head_dim, "half", original_context=self.original_context(keys))
        if kind == "default":
            return plain
        if kind not in ("linear", "llama3", "yarn"):
            self.unsupported(f"rotary scaling {kind!r}; clkiln has linear, llama3 and yarn")
        return self.scaled(plain, kind, keys)

    def original_context(self, keys: _Keys) -> int:
        stated = keys.size("original_max_position_embeddings", self.size("max_position_embeddings"))
        return self.size("original_max_position_embeddings", stated)

    def scaled(self, plain: Rope, kind: RopeScaling, keys: _Keys) -> Rope:
        factor = keys.number("factor")
        extra: dict[str, Any] = {}
        if kind == "llama3":
            low, high = keys.number("low_freq_factor"), keys.number("high_freq_factor")
            if low >= high:
                self.wrong(f"rope_scaling.low_freq_factor {low} is not below high_freq_factor")
            extra = {"low_freq_factor": low, "high_freq_factor": high}
        elif kind == "yarn":
            if not keys.flag("truncate", True):
                self.unsupported("model option rope_scaling.truncate = false")
            extra = {
                "beta_fast": keys.number("beta_fast", 32),
                "beta_slow": keys.number("beta_slow", 1),
                "attention_factor": self.attention_factor(factor, keys),
            }
        return replace(plain, scaling=kind, factor=factor, **extra)

    def attention_factor(self, factor: float, keys: _Keys) -> float:
        if keys.get("mscale") and keys.get("mscale_all_dim"):
            one, all_ = keys.number("mscale"), keys.number("mscale_all_dim")
            natural = yarn_attention_factor(factor, one) / yarn_attention_factor(factor, all_)
        else:
            natural = yarn_attention_factor(factor)
        return keys.number("attention_factor", natural)

    def sampling(self) -> dict[str, Any]:
        """The makers' advice as :class:`ModelConfig` has it; none where they don't sample."""
        values = self.directory.generation
        if values.get("do_sample") is False:
            values = {}
        advice = {
            ours: sampling_default(ours, values.get(name)) for name, ours in _SAMPLING.items()
        }
        top_k, penalty = advice["top_k"], advice["penalty_repeat"]
        return {
            "temperature": advice["temp"],
            "top_k": None if top_k is None else int(top_k),
            "top_p": advice["top_p"],
            "min_p": advice["min_p"],
            "repeat_penalty": penalty,
            # There, the penalty is for every token so far.
            "repeat_last_n": None if penalty is None else -1,
        }

    # -- what is refused ---------------------------------------------------------------------

    def refuse_other_arithmetic(self) -> None:
        classes, own = self.get("architectures", []), _CLASSES[self.architecture]
        if classes and (not isinstance(classes, list) or own not in classes):
            self.unsupported(f"model class {classes}; of {self.architecture}, clkiln has {own}")
        for key in ("quantization_config", "compression_config"):
            if values := self.get(key):
                kind = values.get("quant_method") if isinstance(values, dict) else None
                self.unsupported(f"{key} ({kind or 'unknown'}): take the model's float weights")
        act = self.get("hidden_act", "silu")
        if act not in ("silu", "swish"):
            self.unsupported(f"model option hidden_act = {act!r}")
        for name, neutral in _NEUTRAL.items():
            value = self.get(name)
            if value is not None and value not in neutral:
                self.unsupported(f"model option {name} = {value!r}")
        self.refuse_windows()

    def refuse_windows(self) -> None:
        """Sliding windows: on where a layer has one that hides something of the context."""
        kinds = self.get("layer_types", [])
        if not isinstance(kinds, list):
            self.wrong("layer_types is not a list")
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                self.unsupported(f"layer type {kind!r}")
        llama = self.architecture == "llama"
        window = self.get("sliding_window")
        if window is None or not self.flag("use_sliding_window", llama):
            # Without a window, a layer of that type sees everything.
            return
        first = 0 if llama else self.get("max_window_layers", 0)
        if type(first) is not int:
            self.wrong(f"max_window_layers is {first!r}, not a number of layers")
        slides = "sliding_attention" in kinds if kinds else first < self.size("num_hidden_layers")
        if slides and self.size("sliding_window") < self.size("max_position_embeddings"):
            self.unsupported(f"sliding-window attention (a window of {window} tokens)")
