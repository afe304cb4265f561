"""Configuration from a file: what is derived, and what is refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clk_models import write_model
from clkiln.errors import ModelError, UnsupportedModel
from clkiln.inference.config import SUPPORTED_TYPES, ModelConfig, tensor_shapes
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.rope import Rope

STYLES = [("llama", "interleaved"), ("qwen2", "half"), ("qwen3", "half")]


def config(path: Path, **options: Any) -> ModelConfig:
    return ModelConfig.from_gguf(GGUFFile.open(write_model(path / "m.gguf", **options)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("architecture", "style"), STYLES)
def test_sizes_and_style(tmp_path: Path, architecture: Any, style: str, tied: bool) -> None:
    found = config(
        tmp_path,
        architecture=architecture,
        layers=3,
        hidden=64,
        intermediate=96,
        heads=4,
        kv_heads=2,
        head_dim=32,
        vocab=300,
        context=777,
        rope_theta=5e5,
        tied=tied,
    )
    assert (found.architecture, found.name, found.rope.style) == (architecture, "random", style)
    assert (found.n_layers, found.hidden, found.intermediate) == (3, 64, 96)
    assert (found.n_heads, found.n_kv_heads, found.head_dim) == (4, 2, 32)
    assert (found.q_dim, found.kv_dim, found.vocab, found.context_length) == (128, 64, 300, 777)
    assert (found.rope.theta, found.rope.dim, found.rope.scaling) == (5e5, 32, "none")
    assert found.rms_eps == pytest.approx(1e-5)
    assert (found.tied, found.qkv_bias) == (tied, architecture == "qwen2")
    assert (found.output_bias, found.ffn_bias) == (False, False)
    assert found.qk_norm == (architecture == "qwen3")
    assert (found.temperature, found.top_k, found.top_p) == (None, None, None)


def test_defaults_where_the_file_is_silent(tmp_path: Path) -> None:
    silent = ("attention.key_length", "attention.value_length", "attention.head_count_kv")
    silent += ("rope.freq_base", "rope.dimension_count")
    gone: dict[str, Any] = {f"llama.{name}": None for name in silent}
    plain = Rope(theta=1e4, dim=16, style="interleaved", original_context=512)
    found = config(tmp_path, kv_heads=6, metadata=gone)
    assert (found.head_dim, found.n_kv_heads, found.rope) == (16, 6, plain)


@pytest.mark.parametrize("dtype", SUPPORTED_TYPES)
def test_every_supported_type_loads(tmp_path: Path, dtype: str) -> None:
    sizes = {"hidden": 256, "intermediate": 256, "head_dim": 128}  # blocks of up to 256
    assert config(tmp_path, dtype=dtype, **sizes).vocab == 515


def test_rotary_factors_and_scaling(tmp_path: Path) -> None:
    def rope(kind: str | None, **options: float) -> Rope:
        scaling = {f"llama.rope.scaling.{key}": value for key, value in options.items()}
        return config(tmp_path, metadata={"llama.rope.scaling.type": kind, **scaling}).rope

    assert config(tmp_path, rope_factors=True).rope.file_factors
    for kind in (None, "linear"):  # a factor without a type is linear
        assert (rope(kind, factor=4.0).scaling, rope(kind, factor=4.0).factor) == ("linear", 4)
        assert rope(kind, factor=4.0).attention_factor == 1
    for kind, factor in (("none", 4.0), ("linear", 0.0), ("linear", 1.0), ("yarn", 1.0)):
        assert (rope(kind, factor=factor).scaling, rope(kind, factor=factor).factor) == ("none", 1)
    yarn = rope("yarn", factor=4.0, original_context_length=128, yarn_beta_fast=16.0)
    assert (yarn.scaling, yarn.factor, yarn.original_context) == ("yarn", 4.0, 128)
    assert (yarn.beta_fast, yarn.beta_slow) == (16, 1)
    assert yarn.attention_factor == pytest.approx(1 + 0.1 * math.log(4))
    yarn = rope("yarn", factor=4.0, attn_factor=0.5, yarn_attn_factor=3.0)
    assert yarn.original_context == 512
    assert yarn.attention_factor == pytest.approx(1.5 * (1 + 0.1 * math.log(4)))


def test_sampling_defaults(tmp_path: Path) -> None:
    keys = {"temp": 0.25, "top_k": 20, "top_p": 0.5}
    found = config(tmp_path, metadata={f"general.sampling.{k}": v for k, v in keys.items()})
    assert (found.temperature, found.top_k, found.top_p) == (0.25, 20, 0.5)
    assert type(found.top_k) is int
    nonsense = {"temp": float("nan"), "top_k": "many", "top_p": 7.0}
    found = config(tmp_path, metadata={f"general.sampling.{k}": v for k, v in nonsense.items()})
    assert (found.temperature, found.top_k, found.top_p) == (None, None, None)


def test_one_count_for_each_layer(tmp_path: Path) -> None:
    assert config(tmp_path, metadata={"llama.attention.head_count_kv": [2, 2]}).n_kv_heads == 2
    with pytest.raises(UnsupportedModel, match=r"head_count_kv that differs between layers"):
        config(tmp_path, metadata={"llama.attention.head_count_kv": [2, 3]})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'; clkiln has llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "expert_count = 8"),
        ({"llama.attention.sliding_window": 128}, "sliding-window .* 128 tokens"),
        ({"llama.rope.scaling.type": "longrope"}, "rotary scaling 'longrope'"),
        ({"llama.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier = 0.1"),
        ({"llama.rope.dimension_sections": [8, 4, 4]}, "dimension_sections"),
        ({"llama.logit_scale": 8.0}, "logit_scale = 8"),
        ({"llama.attention.scale": 0.5}, "attention.scale = 0.5"),
        ({"llama.attention.causal": False}, "attention.causal = False"),
        ({"llama.attention.value_length": 32}, "differ in length"),
        (
            {"llama.attention.key_length": 15, "llama.attention.value_length": 15},
            "heads of 15 values",
        ),
        ({"llama.final_logit_softcapping": "x"}, "final_logit_softcapping"),
    ],
)
def test_what_clkiln_lacks_is_named(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        config(tmp_path, metadata=metadata)


def test_neutral_values_of_those_options_are_fine(tmp_path: Path) -> None:
    neutral = {
        "llama.expert_count": 0,
        "llama.attention.sliding_window": 512,
        "llama.logit_scale": 1.0,
        "llama.attention.scale": 0.25,
        "llama.attention.causal": True,
    }
    assert config(tmp_path, metadata=neutral) is not None


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.block_count": None}, "block_count is None"),
        ({"llama.block_count": 3}, r"blk\.2\.attn_norm\.weight is missing"),
        ({"llama.embedding_length": 128}, r"token_embd\.weight has the shape \(515, 96\)"),
        ({"llama.attention.head_count_kv": 4}, "6 heads over 4"),
        ({"llama.rope.dimension_count": 32}, "32 rotary dimensions in heads of 16"),
        ({"llama.context_length": "long"}, "context_length is 'long'"),
        ({"llama.rope.freq_base": float("inf")}, "freq_base is inf"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "epsilon is None"),
        ({"llama.rope.scaling.factor": -1.0}, "scaling.factor is -1"),
        ({"tokenizer.ggml.tokens": ["a"] * 516}, "516 tokens, but 515 rows"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        config(tmp_path, metadata=metadata)
    assert not isinstance(caught.value, UnsupportedModel)


def test_the_embedding_may_be_padded(tmp_path: Path) -> None:
    assert config(tmp_path, metadata={"tokenizer.ggml.tokens": ["a"] * 500}).vocab == 515


def whole_file(path: Path) -> list[str]:
    return list(GGUFFile.open(path / "m.gguf").tensors)


def test_every_tensor_is_needed(tmp_path: Path) -> None:
    options: dict[str, Any] = {"architecture": "qwen3", "tied": False, "rope_factors": True}
    options |= {"bias": True, "output_bias": True, "ffn_bias": True}
    whole = config(tmp_path, **options)
    absent_means_something = (
        "output.weight", "rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.attn_output.bias",
        "blk.0.ffn_down.bias",
    )  # fmt: skip
    names = [name for name, _ in tensor_shapes(whole)]
    assert set(names) == set(whole_file(tmp_path))
    for name in names:
        if name not in absent_means_something:
            with pytest.raises(ModelError, match=f"{name} is missing"):
                config(tmp_path, **options, without=name.__eq__)


def test_a_bias_that_nobody_would_add_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"blk\.0\.attn_k\.bias"):
        config(tmp_path, bias=True, without="blk.0.attn_q.bias".__eq__)
    with pytest.raises(UnsupportedModel, match=r"blk\.1\.attn_output\.bias"):
        config(tmp_path, output_bias=True, without="blk.0.attn_output.bias".__eq__)
    with pytest.raises(UnsupportedModel, match=r"blk\.0\.ffn_gate\.bias"):
        config(tmp_path, ffn_bias=True, without="blk.0.ffn_down.bias".__eq__)


def test_unsupported_weight_type_is_named(tmp_path: Path) -> None:
    def dtype(name: str) -> str:
        return "mxfp4" if name == "blk.1.ffn_up.weight" else "q4_0"

    with pytest.raises(UnsupportedModel, match=r"type mxfp4 of tensor blk\.1\.ffn_up\.weight"):
        config(tmp_path, dtype=dtype)


def test_digest_tells_models_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    thetas = rng.uniform(1e3, 1e6, 4).tolist()
    assert len({config(tmp_path, rope_theta=theta).digest for theta in thetas}) == 4
