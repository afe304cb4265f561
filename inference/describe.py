"""What a model is, from its header alone: for ``clkiln models``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from ..errors import ModelError, UnsupportedModel
from .config import ModelConfig
from .files import MAX_JSON, parse_object, read_bytes
from .gguf import GGUFFile
from .hf import MAX_TOKENIZER
from .installed import bytes_of
from .model import Model, open_model
from .tensors import TensorInfo

_KINDS = {"gpt2": "byte-level BPE", "llama": "SentencePiece", "BPE": "byte-level BPE"}
_ROPE = ("theta", "dim", "style", "scaling", "factor", "original_context")


def describe(path: Path, *, thorough: bool = True) -> dict[str, Any]:
    """Plain data about the model at ``path``; ``bytes`` are bytes, other sizes elements.

    ``unsupported`` says why clkiln cannot run it, None if it can; then there is only what the file
    says of itself. A ``thorough`` look builds the tokenizer, too, which may be what is unsupported.
    Raises ``ModelError`` for a file that is missing or damaged.
    """
    kind = "safetensors" if path.is_dir() else "gguf"
    common = {"path": str(path), "format": kind, "bytes": bytes_of(path)}
    try:
        model = open_model(path)
        found = _supported(model)
    except UnsupportedModel as error:
        return {**common, **_raw(path), "unsupported": _reason(error, path)}
    found |= {"tokenizer": None, "unsupported": None}
    if thorough:
        try:
            model.tokenizer()
        except UnsupportedModel as error:
            found["unsupported"] = _reason(error, path)
        found["tokenizer"] = _tokenizer(path)
    return {**common, **found}


def _reason(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _supported(model: Model) -> dict[str, Any]:
    config = model.config
    biases = {
        "qkv": config.qkv_bias,
        "attention output": config.output_bias,
        "feed-forward": config.ffn_bias,
    }
    return {
        "name": config.name,
        "architecture": config.architecture,
        **_sizes(config),
        "tied": config.tied,
        "biases": [part for part, there in biases.items() if there],
        "qk_norm": config.qk_norm,
        "rope": {name: getattr(config.rope, name) for name in _ROPE},
        "chat_template": model.chat_template is not None,
        **_tensors(model.weights.source.tensors),
    }


def _sizes(config: ModelConfig) -> dict[str, int]:
    return {
        "layers": config.n_layers,
        "hidden": config.hidden,
        "intermediate": config.intermediate,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab": config.vocab,
        "context": config.context_length,
    }


def _tensors(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Numbers by type, the type with most bytes first: that one is called the quantisation."""
    counts, nbytes = Counter[str](), Counter[str]()
    for info in tensors.values():
        counts[info.dtype] += 1
        nbytes[info.dtype] += info.nbytes
    types = [dtype for dtype, _ in nbytes.most_common()]
    return {
        "parameters": sum(prod(info.shape) for info in tensors.values()),
        "quantisation": types[0] if types else None,
        "tensors": {t: {"count": counts[t], "bytes": nbytes[t]} for t in types},
    }


def _raw(path: Path) -> dict[str, Any]:
    """What a model that clkiln cannot run says of itself, as far as that can be read."""
    try:
        return _raw_directory(path) if path.is_dir() else _raw_gguf(path)
    except ModelError:
        return {}


def _raw_gguf(path: Path) -> dict[str, Any]:
    file = GGUFFile.open(path)
    architecture = file.metadata.get("general.architecture")
    return {
        "name": file.metadata.get("general.name"),
        "architecture": architecture,
        "layers": _number(file.metadata.get(f"{architecture}.block_count")),
        "context": _number(file.metadata.get(f"{architecture}.context_length")),
        "chat_template": "tokenizer.chat_template" in file.metadata,
        "tokenizer": _tokenizer(path),
        **_tensors(file.tensors),
    }


def _raw_directory(path: Path) -> dict[str, Any]:
    config = parse_object(read_bytes(path / "config.json", MAX_JSON) or b"", str(path))
    return {
        "name": path.name,
        "architecture": config.get("model_type"),
        "layers": _number(config.get("num_hidden_layers")),
        "context": _number(config.get("max_position_embeddings")),
        "tokenizer": _tokenizer(path),
    }


def _number(value: object) -> int | None:
    return value if type(value) is int else None


def _tokenizer(path: Path) -> str | None:
    """The kind of tokenizer that the model names."""
    if path.is_dir():
        data = read_bytes(path / "tokenizer.json", MAX_TOKENIZER)
        model = {} if data is None else parse_object(data, str(path)).get("model")
        named, pre = model.get("type") if isinstance(model, dict) else None, None
    else:
        metadata = GGUFFile.open(path).metadata
        named, pre = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if named is None:
        return None
    return _KINDS.get(str(named), str(named)) + (f" ({pre})" if pre else "")
