"""Llama, Qwen2 and Qwen3 in float64 NumPy, written from the models' definition: the reference.

It reads the file and dequantises the weights with the ``gguf`` package and shares no line with
clkiln. ``x`` is the residual stream ``[tokens, hidden]``; linear weights are ``[outputs, inputs]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Decoder64:
    """``logits`` runs a whole sequence from scratch; ``extend`` goes on from what was run before.

    The weights are held in float64: eight bytes a parameter.
    """

    def __init__(self, path: str | Path) -> None:
        reader = gguf.GGUFReader(path)
        self._keys: dict[str, Any] = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("tokenizer.")
        }
        self.architecture: str = self._keys["general.architecture"]
        self.weights: dict[str, Array] = {
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            for tensor in reader.tensors
        }
        self.layers: int = self._key("block_count")
        self.heads: int = self._key("attention.head_count")
        self.kv_heads: int = self._key("attention.head_count_kv", self.heads)
        self.eps: float = self._key("attention.layer_norm_rms_epsilon")
        self.vocab, self.hidden = self.weights["token_embd.weight"].shape
        self.head_dim: int = self._key("attention.key_length", self.hidden // self.heads)
        self.rope_dim: int = self._key("rope.dimension_count", self.head_dim)
        self.theta: float = self._key("rope.freq_base", 10000.0)
        self.reset()

    def _key(self, name: str, default: Any = None) -> Any:
        value = self._keys.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise KeyError(name)
        return value

    def reset(self) -> None:
        """Forget every token."""
        empty = np.zeros((0, self.kv_heads, self.head_dim))
        self.keys = [empty] * self.layers
        self.values = [empty] * self.layers

    @property
    def position(self) -> int:
        """Tokens run so far."""
        return len(self.keys[0])

    def logits(self, ids: list[int]) -> Array:
        """Logits ``[len(ids), vocab]`` of a sequence, each position seeing those up to itself."""
        self.reset()
        return self.head(self.forward(ids))

    def extend(self, ids: list[int]) -> Array:
        """Run ``ids`` after what was run before; the logits ``[vocab]`` of the last."""
        return self.head(self.forward(ids)[-1:])[0]

    def greedy(self, ids: list[int], count: int, stop: frozenset[int] = frozenset()) -> list[int]:
        """The ``count`` likeliest next tokens after ``ids``, fewer if one of ``stop`` comes up."""
        self.reset()
        found: list[int] = []
        pending = ids
        while len(found) < count:
            token = int(np.argmax(self.extend(pending)))
            if token in stop:
                break
            found.append(token)
            pending = [token]
        return found

    def forward(self, ids: list[int]) -> Array:
        """The residual stream ``[len(ids), hidden]`` after the last layer."""
        x = self.weights["token_embd.weight"][ids]
        for layer in range(self.layers):
            x = x + self.attention(layer, self.norm(x, f"blk.{layer}.attn_norm.weight"))
            x = x + self.feed_forward(layer, self.norm(x, f"blk.{layer}.ffn_norm.weight"))
        return x

    def head(self, x: Array) -> Array:
        x = self.norm(x, "output_norm.weight")
        return x @ self.weights.get("output.weight", self.weights["token_embd.weight"]).T

    def norm(self, x: Array, name: str) -> Array:
        """RMSNorm: ``x / sqrt(mean(x^2) + eps)``, times a weight for each column."""
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * self.weights[name]

    def linear(self, x: Array, name: str) -> Array:
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def feed_forward(self, layer: int, x: Array) -> Array:
        """``down(silu(gate(x)) * up(x))``."""
        gate = self.linear(x, f"blk.{layer}.ffn_gate")
        up = self.linear(x, f"blk.{layer}.ffn_up")
        return self.linear(gate / (1 + np.exp(-gate)) * up, f"blk.{layer}.ffn_down")

    def attention(self, layer: int, x: Array) -> Array:
        """Causal attention; each key-value head serves ``heads / kv_heads`` query heads."""
        start, length = len(self.keys[layer]), len(x)
        positions = np.arange(start, start + length)
        q = self.linear(x, f"blk.{layer}.attn_q").reshape(length, self.heads, self.head_dim)
        k = self.linear(x, f"blk.{layer}.attn_k").reshape(length, self.kv_heads, self.head_dim)
        v = self.linear(x, f"blk.{layer}.attn_v").reshape(length, self.kv_heads, self.head_dim)
        if self.architecture == "qwen3":
            q = self.norm(q, f"blk.{layer}.attn_q_norm.weight")
            k = self.norm(k, f"blk.{layer}.attn_k_norm.weight")
        q, k = self.rotate(q, positions), self.rotate(k, positions)
        self.keys[layer] = np.concatenate([self.keys[layer], self.kept(k)])
        self.values[layer] = np.concatenate([self.values[layer], self.kept(v)])

        group = self.heads // self.kv_heads
        keys = np.repeat(self.keys[layer], group, axis=1).transpose(1, 2, 0)
        values = np.repeat(self.values[layer], group, axis=1).transpose(1, 0, 2)
        scores = q.transpose(1, 0, 2) @ keys / np.sqrt(self.head_dim)
        future = np.arange(start + length)[None, :] > positions[:, None]
        scores = np.where(future, -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ values).transpose(1, 0, 2).reshape(length, -1)
        return self.linear(mixed, f"blk.{layer}.attn_output")

    def kept(self, x: Array) -> Array:
        """What is remembered of keys or values: all of it. A subclass may round."""
        return x

    def rotate(self, x: Array, positions: NDArray[np.int64]) -> Array:
        """Rotary embedding of ``x [tokens, heads, head_dim]``: pair ``i`` of the first ``rope_dim``
        elements turns by ``position * frequency``, and is multiplied by YaRN's factor.

        llama's rows were permuted when the file was written, so that pairs are neighbours; qwen2
        pairs the two halves.
        """
        pairs = self.rope_dim // 2
        frequencies, size = self.frequencies()
        angles = (positions[:, None] * frequencies)[:, None, :]
        cos, sin = size * np.cos(angles), size * np.sin(angles)
        out = x.copy()
        if self.architecture == "llama":
            first, second = slice(0, self.rope_dim, 2), slice(1, self.rope_dim, 2)
        else:
            first, second = slice(0, pairs), slice(pairs, self.rope_dim)
        a, b = x[..., first], x[..., second]
        out[..., first] = a * cos - b * sin
        out[..., second] = a * sin + b * cos
        return out

    def frequencies(self) -> tuple[Array, float]:
        """``theta^(-2i / rope_dim)`` of each pair as the file scales it, and YaRN's factor."""
        pairs = np.arange(self.rope_dim // 2)
        plain = self.theta ** (-2 * pairs / self.rope_dim)
        factor = self._key("rope.scaling.factor", 1.0) or 1.0
        kind, size = self._key("rope.scaling.type", "linear"), 1.0
        if kind == "linear":
            plain = plain / factor
        elif kind == "yarn":
            trained = self._key("rope.scaling.original_context_length")
            # The pairs that turn 32 times and once in the context that was trained.
            fast, slow = (
                np.log(trained / (2 * np.pi * turns)) / np.log(self.theta) * self.rope_dim / 2
                for turns in (32, 1)
            )
            fast, slow = max(np.floor(fast), 0), min(np.ceil(slow), self.rope_dim - 1)
            stretched = np.interp(pairs, [fast, slow], [0, 1])
            plain = plain * (1 - stretched) + plain / factor * stretched
            size = 1 + np.log(factor) / 10
        return plain / self.weights.get("rope_freqs.weight", 1.0), size
