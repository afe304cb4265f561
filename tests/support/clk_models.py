"""Small random models as GGUF files, written by the ``gguf`` package and by none of our code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType, TokenType

from clk_quants import quantised

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BYTE_TOKENS = 256

#: File formats of matrices by our names, which are the specification's in small letters.
_TYPES = {kind.name.lower(): kind for kind in GGMLQuantizationType}


def byte_level_characters() -> list[str]:
    """GPT-2's character for each byte, built from its published rule."""
    own = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = count(0x100)
    return [chr(byte) if byte in own else chr(next(spare)) for byte in range(256)]


def words() -> Iterator[tuple[str, str]]:
    """Endless merges: every string over 16 frequent letters, by length, as (prefix, last letter).

    ``Ġ`` is the space, so that there are merges within words and at their starts.
    """
    letters = "Ġetaoinshrdlcumw"
    shorter = list(letters)
    while True:
        longer = []
        for prefix in shorter:
            for letter in letters:
                yield prefix, letter
                longer.append(prefix + letter)
        shorter = longer


def bpe_vocabulary(size: int) -> tuple[list[str], list[int], list[str]]:
    """``size`` tokens: special ones, 256 bytes, merges; with their GGUF types and the merges."""
    smallest = BYTE_TOKENS + len(SPECIAL) + 1
    if size < smallest:
        raise ValueError(f"a vocabulary has at least {smallest} tokens, not {size}")
    merges = list(islice(words(), size - smallest + 1))
    tokens = [*SPECIAL, *byte_level_characters(), *(left + right for left, right in merges)]
    types = [TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (size - len(SPECIAL))
    return tokens, [int(kind) for kind in types], [" ".join(pair) for pair in merges]


def write_model(
    path: Path,
    *,
    architecture: Literal["llama", "qwen2", "qwen3"] = "llama",
    dtype: str | Callable[[str], str] = "q4_0",
    layers: int = 2,
    hidden: int = 96,
    intermediate: int = 160,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 16,
    vocab: int = 515,
    context: int = 512,
    rope_theta: float = 10000.0,
    rope_factors: bool | Literal["llama3"] = False,
    tied: bool = True,
    bias: bool | None = None,
    output_bias: bool = False,
    ffn_bias: bool = False,
    template: str | None = CHATML,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
    without: Callable[[str], bool] = lambda name: False,
) -> Path:
    """Write a random model to ``path`` and return it.

    ``dtype`` is the type of linear weights and embedding, or a function from tensor name to type.
    ``rope_factors`` are random, or those of :func:`llama3_factors`. ``bias`` (queries, keys,
    values) defaults to what the architecture has, ``output_bias`` is that of the attention's
    output, ``ffn_bias`` that of all three layers behind it. ``metadata`` adds or replaces keys
    (None removes one), ``without`` leaves tensors out.
    """
    rng = np.random.default_rng(seed)
    bias = architecture == "qwen2" if bias is None else bias
    q_dim, kv_dim = heads * head_dim, kv_heads * head_dim

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    def vector(size: int, middle: float) -> np.ndarray:
        return rng.normal(middle, 0.1, size).astype(np.float32)

    # Times 4: logits spread by a few units, as a trained model's do.
    tensors = {
        "token_embd.weight": matrix(vocab, hidden) * 4,
        "output_norm.weight": vector(hidden, 1),
    }
    if not tied:
        tensors["output.weight"] = matrix(vocab, hidden) * 4
    if rope_factors:
        factors = rng.uniform(1, 8, head_dim // 2)
        if rope_factors == "llama3":
            factors = llama3_factors(rope_theta, head_dim)
        tensors["rope_freqs.weight"] = factors.astype(np.float32)
    for index in range(layers):
        block = {
            "attn_norm.weight": vector(hidden, 1),
            "attn_q.weight": matrix(q_dim, hidden),
            "attn_k.weight": matrix(kv_dim, hidden),
            "attn_v.weight": matrix(kv_dim, hidden),
            "attn_output.weight": matrix(hidden, q_dim),
            "ffn_norm.weight": vector(hidden, 1),
            "ffn_gate.weight": matrix(intermediate, hidden),
            "ffn_up.weight": matrix(intermediate, hidden),
            "ffn_down.weight": matrix(hidden, intermediate),
        }
        if bias:
            block["attn_q.bias"] = vector(q_dim, 0)
            block["attn_k.bias"] = vector(kv_dim, 0)
            block["attn_v.bias"] = vector(kv_dim, 0)
        if output_bias:
            block["attn_output.bias"] = vector(hidden, 0)
        if ffn_bias:
            block["ffn_gate.bias"] = vector(intermediate, 0)
            block["ffn_up.bias"] = vector(intermediate, 0)
            block["ffn_down.bias"] = vector(hidden, 0)
        if architecture == "qwen3":
            block["attn_q_norm.weight"] = vector(head_dim, 1)
            block["attn_k_norm.weight"] = vector(head_dim, 1)
        tensors |= {f"blk.{index}.{name}": values for name, values in block.items()}

    keys = {
        "general.name": "random",
        f"{architecture}.block_count": layers,
        f"{architecture}.embedding_length": hidden,
        f"{architecture}.feed_forward_length": intermediate,
        f"{architecture}.attention.head_count": heads,
        f"{architecture}.attention.head_count_kv": kv_heads,
        f"{architecture}.attention.key_length": head_dim,
        f"{architecture}.attention.value_length": head_dim,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.context_length": context,
        f"{architecture}.rope.freq_base": rope_theta,
        f"{architecture}.rope.dimension_count": head_dim,
        **vocabulary_keys(vocab, template),
        **(metadata or {}),
    }
    kept = {name: values for name, values in tensors.items() if not without(name)}
    _write(path, architecture, keys, kept, dtype)
    return path


def llama3_factors(theta: float, head_dim: int, trained: int = 64) -> np.ndarray:
    """What Llama 3's converters write into ``rope_freqs.weight``, for a factor of 8.

    Waves of which four or more fit into the ``trained`` context stay, those of which not one does
    get eight times as long.
    """
    factors = []
    for pair in range(head_dim // 2):
        fitting = trained * theta ** (-2 * pair / head_dim) / (2 * np.pi)
        smooth = (fitting - 1) / (4 - 1)
        middle = 1 / ((1 - smooth) / 8 + smooth)
        factors.append(1.0 if fitting > 4 else 8.0 if fitting < 1 else middle)
    return np.array(factors)


def vocabulary_keys(size: int, template: str | None = CHATML) -> dict[str, Any]:
    """The ``tokenizer.*`` metadata of a byte-level vocabulary of ``size`` tokens."""
    tokens, types, merges = bpe_vocabulary(size)
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": SPECIAL.index("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": SPECIAL.index("<|im_end|>"),
        "tokenizer.ggml.add_bos_token": False,
    }
    if template is not None:
        keys["tokenizer.chat_template"] = template
    return keys


def as_read(keys: Mapping[str, Any]) -> dict[str, Any]:
    """``keys`` in the form in which clkiln reads them: tuples of strings, arrays of numbers."""
    return {
        key: (tuple(value) if value and isinstance(value[0], str) else np.asarray(value))
        if isinstance(value, list)
        else value
        for key, value in keys.items()
    }


def _write(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    dtype: str | Callable[[str], str],
) -> None:
    writer = gguf.GGUFWriter(path, str(keys.get("general.architecture", architecture)))
    for key, value in keys.items():
        if key != "general.architecture" and value is not None:
            _add_key(writer, key, value)
    for name, values in tensors.items():
        wanted = dtype if isinstance(dtype, str) else dtype(name)
        kind = _TYPES[wanted] if values.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(name, quantised(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
