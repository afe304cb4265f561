"""Float models quantised at load: which tensors, to which bits, and what becomes of the logits."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

import clk_engine
import clk_hf
from clk_decoder64 import Decoder64
from clk_hf import write_directory
from clk_models import write_model
from clkiln.errors import ModelError, UsageError
from clkiln.inference import quantised
from clkiln.inference.model import open_model
from clkiln.inference.tensors import WHOLE, TensorInfo

KINDS = {"q4_0": GGMLQuantizationType.Q4_0, "q8_0": GGMLQuantizationType.Q8_0}
EXPECTED = 2e-5
#: Rows of the feed-forward network's last matrix have no whole blocks: it stays as it is.
SHAPE: dict[str, Any] = {"dtype": "f32", "hidden": 96, "intermediate": 101, "head_dim": 32}


def coded(values: np.ndarray, kind: str) -> np.ndarray:
    """The ``gguf`` package's blocks of float32 ``values``."""
    return gguf.quants.quantize(values, KINDS[kind])


def reference(path: Path, dtype: str, kind: str) -> Decoder64:
    """The decoder over weights rounded to ``dtype`` and then quantised, where that is done."""
    decoder = clk_hf.reference(path, dtype)
    for name, values in decoder.weights.items():
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            blocks = coded(values.astype(np.float32), kind)
            found = gguf.quants.dequantize(blocks, KINDS[kind])
            decoder.weights[name] = found.astype(np.float64)
    return decoder


# -- which tensors, to which bits ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_blocks_are_those_of_the_gguf_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, kind: str
) -> None:
    monkeypatch.setattr(quantised, "_CHUNK", 1000)  # so that matrices come in many parts
    model = write_model(tmp_path / "m.gguf", **SHAPE, tied=False, vocab=515)
    path = write_directory(tmp_path / "m", model, dtype=dtype, shards=2)
    plain, coarse = open_model(path), open_model(path, kind)
    kept = {name for name in plain.weights.source.tensors if "norm" in name or "ffn_down" in name}
    for name, info in coarse.weights.source.tensors.items():
        before, after = plain.weights.source.raw(name), coarse.weights.source.raw(name)
        assert info.nbytes == after.nbytes
        if name in kept:
            assert (info.dtype, after.tobytes()) == (dtype, before.tobytes())
            assert not after.flags.owndata
            continue
        floats = (before.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else before
        assert (info.dtype, info.shape) == (kind, before.shape)
        assert (after == coded(floats.astype(np.float32), kind)).all()


def test_what_is_quantised_already_stays(tmp_path: Path) -> None:
    def dtype(name: str) -> str:
        return "f16" if "attn" in name else "q4_1"

    path = write_model(tmp_path / "m.gguf", dtype=dtype)
    tensors = open_model(path, "q8_0").weights.source.tensors
    kinds = {name: info.dtype for name, info in tensors.items() if len(info.shape) == 2}
    assert {kind for name, kind in kinds.items() if "attn" in name} == {"q8_0"}
    assert {kind for name, kind in kinds.items() if "attn" not in name} == {"q4_1"}


def test_nothing_to_quantise_is_said(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", dtype="q4_1")
    with pytest.raises(UsageError, match=r"m\.gguf has nothing to quantise"):
        open_model(path, "q8_0")
    with pytest.raises(UsageError, match="quantize 'q4_1': q4_0 or q8_0"):
        open_model(path, "q4_1")


def test_digests_differ(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", dtype="f16")
    kinds = (None, "q4_0", "q8_0")
    assert len({open_model(path, kind).config.digest for kind in kinds}) == 3
    assert open_model(path, "q4_0").config.digest == open_model(path, "q4_0").config.digest


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30])
def test_numbers_that_have_no_coding_are_named(tmp_path: Path, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    matrix = np.ones((101, 96), np.float32)
    matrix[70, 5] = value
    model = write_model(tmp_path / "m.gguf", **SHAPE)
    path = write_directory(tmp_path / "m", model, tensors={name: matrix})
    weights = open_model(path, "q8_0").weights
    weights.matrix("blk.0.gate_up")
    with pytest.raises(
        ModelError, match=rf"m/model\.safetensors: tensor {name} can't be"
    ) as caught:
        weights.matrix("blk.1.gate_up")
    assert "\n" not in str(caught.value)


class OneMatrix:
    """Files of one large float16 matrix."""

    def __init__(self, rows: int, columns: int) -> None:
        self.array = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float16)
        self.path = Path("one")
        self.tensors = {"m": TensorInfo("m", "f16", self.array.shape, 0, self.array.nbytes)}

    def place(self, name: str) -> tuple[Path, str]:
        return self.path, name

    def digest(self) -> str:
        return "0"

    def raw(self, name: str, rows: slice = WHOLE) -> np.ndarray:
        return self.array[rows]


def test_only_the_rows_that_are_asked_for_are_quantised() -> None:
    source = OneMatrix(300, 64)
    files = quantised.QuantisedFiles(source, "q4_0")
    whole = files.raw("m")
    source.array[:100], source.array[170:] = np.nan, np.nan  # which can't be
    assert (files.raw("m", slice(100, 170)) == whole[100:170]).all()


def test_a_matrix_is_never_whole_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "_CHUNK", 1 << 16)
    files = quantised.QuantisedFiles(OneMatrix(8192, 1024), "q8_0")
    tracemalloc.start()
    try:
        blocks = files.raw("m")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert blocks.nbytes == 8192 * 1024 // 32 * 34
    assert peak < blocks.nbytes + 8192 * 1024 * 4 // 3


# -- what becomes of the logits --------------------------------------------------------------------


#: Sizes that other tests have, so that most programs are there already.
BLOCKS = {**SHAPE, "intermediate": 160}


@pytest.mark.parametrize(
    ("architecture", "dtype", "kind"),
    [
        ("llama3", "bf16", "q8_0"),
        pytest.param("qwen2", "f16", "q4_0", marks=pytest.mark.long),
        pytest.param("qwen3", "bf16", "q8_0", marks=pytest.mark.long),
        pytest.param("llama biases", "bf16", "q4_0", marks=pytest.mark.long),
    ],
)
def test_logits(tmp_path: Path, architecture: str, dtype: str, kind: str) -> None:
    own = clk_engine.ARCHITECTURES[architecture]
    model = write_model(tmp_path / "m.gguf", **BLOCKS, **own)
    path = write_directory(tmp_path / "m", model, dtype=dtype, shards=2)
    check_logits(path, kind, reference(model, dtype, kind), Decoder64(model))


@pytest.mark.long
def test_logits_where_some_stay_floats(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", **SHAPE)
    check_logits(path, "q4_0", reference(path, "f32", "q4_0"), Decoder64(path))


def check_logits(path: Path, kind: str, want: Decoder64, plain: Decoder64) -> None:
    ids = clk_engine.prompt(70, want.vocab)
    expected = want.logits(ids)[-1]
    with clk_engine.engine(path, quantize=kind) as engine:
        engine.runner.feed(ids)
        error = clk_engine.relative_error(engine.runner.logits(), expected)
    assert error <= EXPECTED, f"relative L2 error {error:.2e}"
    assert clk_engine.relative_error(plain.logits(ids)[-1], expected) > 100 * EXPECTED
