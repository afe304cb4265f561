"""Model directories in the form of the ``transformers`` library, written by none of our code.

A directory is made from a GGUF file of random weights, so that the float64 decoder over that file
(its weights rounded as the directory stores them) is its reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from safetensors import TensorSpec, serialize_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from clk_decoder64 import Array, Decoder64
from clk_models import CHATML, SPECIAL, bpe_vocabulary

_STORED = {
    "f32": ("float32", GGMLQuantizationType.F32),
    "f16": ("float16", GGMLQuantizationType.F16),
    "bf16": ("bfloat16", GGMLQuantizationType.BF16),
}
_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def hf_name(name: str) -> str:
    """The ``transformers`` library's name of a tensor."""
    if name in _OUTER:
        return _OUTER[name]
    _, layer, own, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER[own]}.{kind}"


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 ``values`` as ``dtype`` can hold them."""
    kind = _STORED[dtype][1]
    return gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind).reshape(values.shape)


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of query or key, in which a rotated pair lies side by side, with the first of all the
    pairs of a head before the second ones."""
    shape = (heads, rows.shape[0] // heads // 2, 2, -1)
    return np.ascontiguousarray(rows.reshape(shape).swapaxes(1, 2)).reshape(rows.shape)


def reference(path: Path, dtype: str = "f32") -> Decoder64:
    """The decoder of a GGUF file, its weights rounded to ``dtype``."""
    decoder = Decoder64(path)
    for name, values in decoder.weights.items():
        if name != "rope_freqs.weight":
            decoder.weights[name] = _float64(rounded(values.astype(np.float32), dtype))
    return decoder


def write_directory(
    path: Path,
    source: Path,
    *,
    dtype: str = "f32",
    shards: int = 1,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
    tokens: int | None = None,
) -> Path:
    """Write the model of the GGUF file ``source`` as the directory ``path`` and return it.

    All weights are stored as ``dtype``. ``config`` adds or replaces keys of ``config.json`` (None
    removes one), ``tensors`` adds, replaces and removes tensors by their names there. ``tokens``
    is the number of tokens of the tokenizer, by default one for each row of the embedding.
    """
    path.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(source)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    values = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }
    factors = values.pop("rope_freqs.weight", None)
    own = _config(keys, values, factors)
    stated = {**own, **(config or {})}
    _write_json(path / "config.json", {k: v for k, v in stated.items() if v is not None})
    if keys["general.architecture"] == "llama":
        for name in values:
            heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
            if name.split(".")[-2] in heads:
                values[name] = halves(values[name], own[heads[name.split(".")[-2]]])
    named = {**{hf_name(name): array for name, array in values.items()}, **(tensors or {})}
    write_tensors(path, {name: a for name, a in named.items() if a is not None}, dtype, shards)
    write_tokenizer(path, tokens or values["token_embd.weight"].shape[0])
    return path


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str, shards: int) -> None:
    """The weights, in one file or in several with an index."""
    stored, kind = _STORED[dtype]
    data = {name: gguf.quants.quantize(array, kind) for name, array in tensors.items()}
    described = {
        name: TensorSpec(
            dtype=stored,
            shape=tensors[name].shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in data.items()
    }
    if shards == 1:
        serialize_file(described, path / "model.safetensors", {"format": "pt"})
        return
    place = {name: n % shards for n, name in enumerate(described)}
    files = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    for number, file in enumerate(files):
        part = {name: described[name] for name in described if place[name] == number}
        serialize_file(part, path / file, {"format": "pt"})
    weight_map = {name: files[number] for name, number in place.items()}
    total = sum(array.nbytes for array in data.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(path / "model.safetensors.index.json", index)


def write_tokenizer(path: Path, size: int) -> None:
    """The byte-level tokenizer that GGUF files of :mod:`clk_models` have, as such files hold it."""
    tokens, _, merges = bpe_vocabulary(size)
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    library = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, pairs))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    library.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    library.save(str(path / "tokenizer.json"))
    stated = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "chat_template": CHATML}
    _write_json(path / "tokenizer_config.json", stated)
    _write_json(path / "generation_config.json", {"eos_token_id": [2], "bos_token_id": 1})


def _config(
    keys: Mapping[str, Any], values: Mapping[str, np.ndarray], factors: np.ndarray | None
) -> dict[str, Any]:
    architecture = keys["general.architecture"]

    def key(name: str) -> Any:
        return keys.get(f"{architecture}.{name}")

    stated = {
        "architectures": [f"{_CLASSES[architecture]}ForCausalLM"],
        "model_type": architecture,
        "num_hidden_layers": key("block_count"),
        "hidden_size": key("embedding_length"),
        "intermediate_size": key("feed_forward_length"),
        "num_attention_heads": key("attention.head_count"),
        "num_key_value_heads": key("attention.head_count_kv"),
        "head_dim": key("attention.key_length"),
        "vocab_size": values["token_embd.weight"].shape[0],
        "max_position_embeddings": key("context_length"),
        "rms_norm_eps": float(key("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(key("rope.freq_base")),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in values,
        "attention_bias": architecture != "qwen2" and "blk.0.attn_q.bias" in values,
        "mlp_bias": "blk.0.ffn_down.bias" in values,
        "use_sliding_window": False,
        "sliding_window": 64,
    }
    if factors is not None:
        # Those of clk_models.llama3_factors.
        stated["rope_scaling"] = {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }  # fmt: skip
    elif key("rope.scaling.type"):
        stated["rope_scaling"] = {
            "type": key("rope.scaling.type"),
            "factor": float(key("rope.scaling.factor")),
            "original_max_position_embeddings": key("rope.scaling.original_context_length"),
        }
    if architecture == "llama":
        del stated["use_sliding_window"], stated["sliding_window"]
    return stated


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))


def _float64(values: np.ndarray) -> Array:
    return values.astype(np.float64)
