"""The reference decoder itself: tests of the engine are worth what this is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clk_engine
from clk_decoder64 import Decoder64
from clk_models import write_model
from clkiln.inference.chat import render
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.tokenizer import Tokenizer

IDS = [5, 300, 7, 7, 100, 2, 400, 33]


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> Decoder64:
    return Decoder64(write_model(tmp_path / "m.gguf", architecture=request.param, dtype="f32"))


@pytest.mark.parametrize("cuts", [[8], [1] * 8, [3, 5], [5, 1, 2]])
def test_incremental_is_the_whole(decoder: Decoder64, cuts: list[int]) -> None:
    whole = decoder.logits(IDS)
    decoder.reset()
    start = 0
    for cut in cuts:
        start += cut
        last = decoder.extend(IDS[start - cut : start])
        np.testing.assert_allclose(last, whole[start - 1], rtol=1e-11, atol=1e-11)
    assert decoder.position == len(IDS)


def test_no_position_sees_a_later_one(decoder: Decoder64) -> None:
    first = decoder.logits(IDS)
    second = decoder.logits([*IDS[:5], 11, 12, 13])
    np.testing.assert_allclose(first[:5], second[:5], rtol=1e-11, atol=1e-11)
    assert not np.allclose(first[5:], second[5:])


def test_rotation_depends_on_distance_only(decoder: Decoder64) -> None:
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, decoder.head_dim))

    def score(i: int, j: int) -> float:
        turned = decoder.rotate(q, np.array([i])), decoder.rotate(k, np.array([j]))
        return float(np.sum(turned[0] * turned[1]))

    assert score(9, 4) == pytest.approx(score(105, 100))
    assert score(9, 4) != pytest.approx(score(9, 5))
    assert score(0, 0) == pytest.approx(float(np.sum(q * k)))


def test_styles_are_one_rotation_with_rows_permuted(tmp_path: Path) -> None:
    """A qwen2 file whose query and key rows are permuted as llama's converters do, is a llama."""
    options: dict[str, Any] = {"dtype": "f32", "bias": False, "seed": 3}
    half = Decoder64(write_model(tmp_path / "q.gguf", architecture="qwen2", **options))
    expected = half.logits(IDS)
    neighbours = Decoder64(write_model(tmp_path / "l.gguf", architecture="llama", **options))
    for name, weight in half.weights.items():
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = weight.reshape(-1, 2, half.head_dim // 2, half.hidden)
            weight = heads.swapaxes(1, 2).reshape(weight.shape)
        neighbours.weights[name] = weight
    np.testing.assert_allclose(neighbours.logits(IDS), expected, rtol=1e-10, atol=1e-10)


def test_options_change_the_result(tmp_path: Path) -> None:
    base: dict[str, Any] = {"architecture": "llama", "dtype": "f32"}
    linear: dict[str, Any] = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    yarn = {"llama.rope.scaling.original_context_length": 64, **linear}
    yarn["llama.rope.scaling.type"] = "yarn"
    variants: list[dict[str, Any]] = [{}, {"rope_factors": True}, {"metadata": linear}]
    variants += [
        {"metadata": yarn},
        {"rope_theta": 1e6},
        {"bias": True},
        {"output_bias": True},
        {"ffn_bias": True},
    ]
    variants += [{"tied": False}, {"architecture": "qwen2", "bias": False}]
    variants += [{"architecture": "qwen3"}]
    results = [
        Decoder64(write_model(tmp_path / f"{n}.gguf", **{**base, **options})).logits(IDS)
        for n, options in enumerate(variants)
    ]
    for n, result in enumerate(results):
        assert np.isfinite(result).all()
        assert not any(np.allclose(result, other) for other in results[:n])


@pytest.mark.parametrize("coding", clk_engine.FORMATS)
def test_every_format_is_written_as_meant(tmp_path: Path, coding: str) -> None:
    """Finite weights of the spread that was asked for, in files that the reference reads."""
    shape = clk_engine.sizes(coding, 6)
    file = write_model(tmp_path / "m.gguf", dtype=clk_engine.FORMATS[coding], tied=False, **shape)
    decoder = Decoder64(file)
    for name, weight in decoder.weights.items():
        assert np.isfinite(weight).all(), name
        if weight.ndim == 2:
            spread = weight.shape[1] ** -0.5 * (1 if name.startswith("blk.") else 4)
            assert weight.std() == pytest.approx(spread, rel=0.15), name
            assert abs(weight.mean()) < 0.1 * spread, name
    assert 1 < decoder.logits(IDS).std() < 100


@pytest.mark.long
def test_the_real_model_knows_the_capital_of_france(model_file: Path) -> None:
    metadata = GGUFFile.open(model_file).metadata
    tokenizer = Tokenizer.from_gguf(metadata)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    template = metadata["tokenizer.chat_template"]
    text = render(question, template, bos=tokenizer.bos_text, eos=tokenizer.eos_text)
    answer = Decoder64(model_file).greedy(tokenizer.prompt(text), 20, tokenizer.stop_ids)
    assert tokenizer.decode(answer) == "The capital of France is Paris."
