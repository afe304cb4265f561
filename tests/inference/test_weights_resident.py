"""Weights from the file to the device: under the graph's names, and in every layout."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest

import clk_engine
from clkiln.errors import OutOfDeviceMemory
from clkiln.inference.config import ModelConfig
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.resident import ResidentWeights
from clkiln.inference.weights import Weights, piece_name
from clkiln.kernels import SPECS
from clkiln.kernels.layout import Layout, pack
from clkiln.kernels.types import Workload
from clkiln.runtime.context import Context

NAMES = [
    "token_embd", "blk.0.qkv", "blk.0.attn_output", "blk.0.gate_up", "blk.0.ffn_down",
]  # fmt: skip
PARTS = {"qkv": ("attn_q", "attn_k", "attn_v"), "gate_up": ("ffn_gate", "ffn_up")}
MODELS = clk_engine.MODELS


@cache
def weights(name: str) -> Weights:
    file = GGUFFile.open(clk_engine.model(name))
    return Weights(file, ModelConfig.from_gguf(file))


@cache
def tensors(path: Path) -> dict[str, np.ndarray]:
    """What the gguf package makes of the file: float32 arrays by name."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }


def expected(name: str, weight: str, kind: str) -> np.ndarray:
    layer, _, last = weight.rpartition(".")
    parts = [f"{layer}.{part}" if layer else part for part in PARTS.get(last, (last,))]
    found = {part: tensors(clk_engine.model(name))[f"{part}.{kind}"] for part in parts}
    config = weights(name).config
    if config.turned_rows:
        for part in (part for part in parts if part.endswith(("attn_q", "attn_k"))):
            # Of each head, the first and the second of every rotated pair: the pairs, one by one.
            shape = found[part].shape
            firsts = found[part].reshape(-1, 2, config.head_dim // 2, *shape[1:])
            found[part] = firsts.swapaxes(1, 2).reshape(shape)
    return np.concatenate(list(found.values()))


@pytest.mark.parametrize("name", MODELS)
def test_matrices_are_the_files(name: str) -> None:
    own = weights(name)
    names = NAMES if own.config.tied else [*NAMES, "output"]
    for weight in names:
        matrix = own.matrix(weight)
        assert matrix.dtype == own.dtype(weight)
        assert (matrix.dequantise() == expected(name, weight, "weight")).all(), weight


@pytest.mark.parametrize("name", MODELS)
def test_pieces_are_rows_of_the_matrix(name: str) -> None:
    """Whatever the rows; of gate and up those of both."""
    own, rng = weights(name), np.random.default_rng(MODELS.index(name))
    for weight in NAMES:
        whole = own.matrix(weight)
        halves = 2 if weight.endswith("gate_up") else 1
        rows = whole.dequantise().reshape(halves, -1, whole.cols)
        for _ in range(6):
            start, stop = sorted(rng.choice(rows.shape[1] + 1, 2, replace=False))
            piece = own.matrix(piece_name(weight, start, stop))
            assert (piece.dtype, piece.rows) == (whole.dtype, halves * (stop - start))
            expected = rows[:, start:stop].reshape(-1, whole.cols)
            assert (piece.dequantise() == expected).all(), (weight, start, stop)


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_the_files(name: str) -> None:
    own = weights(name)
    for weight in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        assert (own.vector(weight) == expected(name, weight, "weight")).all()
    biased = {"qkv": own.config.qkv_bias, "attn_output": own.config.output_bias}
    biased |= dict.fromkeys(("gate_up", "ffn_down"), own.config.ffn_bias)
    for weight in (f"blk.0.{last}" for last, there in biased.items() if there):
        bias = own.vector(f"{weight}.bias")
        assert bias.dtype == np.float32
        assert (bias == expected(name, weight, "bias")).all()


def test_a_matrix_of_one_tensor_is_a_view_of_the_file() -> None:
    """Nothing is copied before it is packed; stacked parts can't be views."""
    own = weights("llama2/q4_0")
    for weight in ("token_embd", "blk.0.attn_output", "blk.0.ffn_down"):
        raw = own.source.raw(f"{weight}.weight")
        assert np.shares_memory(own.matrix(weight).data, raw)
        piece = own.matrix(piece_name(weight, 3, 20)).data
        assert np.shares_memory(piece, raw[3:20])
        assert not np.shares_memory(piece, raw[20:])


@pytest.mark.parametrize("name", ["llama3/q8_0", "qwen3/f32"])
def test_the_rotary_table(name: str) -> None:
    own, positions = weights(name), 700
    c = own.config
    for position in (0, 1, 13, positions - 1):
        row = own.rope_table(positions)[position]
        for pair in range(c.rope.dim // 2):
            frequency = c.rope.theta ** (-2 * pair / c.rope.dim)
            if c.rope.file_factors:
                frequency /= float(tensors(clk_engine.model(name))["rope_freqs.weight"][pair])
            angle = position * frequency
            assert np.allclose(row[pair], (np.cos(angle), np.sin(angle)), rtol=0, atol=1e-7)


def test_linear_scaling_divides_positions(tmp_path: Path) -> None:
    scaled = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    file = GGUFFile.open(clk_engine.variation(tmp_path / "m.gguf", metadata=scaled))
    table = Weights(file, ModelConfig.from_gguf(file)).rope_table(41)
    file = GGUFFile.open(clk_engine.small_model())
    plain = Weights(file, ModelConfig.from_gguf(file)).rope_table(11)
    assert np.allclose(table[::4], plain, atol=1e-7)


# -- on the device ---------------------------------------------------------------------------------


def layouts(own: Weights, weight: str) -> list[str]:
    """Every layout in which some configuration of GEMV reads the weight."""
    matrix = own.matrix(weight)
    paired = weight.endswith("gate_up")
    workload = Workload.of(
        "gemv", n=matrix.rows // (2 if paired else 1), k=matrix.cols, w=matrix.dtype,
        bias="no", fuse="swiglu" if paired else "none",
    )  # fmt: skip
    spec = SPECS["gemv"]
    return sorted({str(spec.layout(workload, config)) for config in spec.space(workload)})


@pytest.mark.parametrize("name", MODELS)
def test_what_lies_on_the_device_is_what_was_packed(name: str) -> None:
    own = weights(name)
    rng = np.random.default_rng(MODELS.index(name))
    with Context(clk_engine.a_device()) as context:
        for _ in range(3):
            resident = ResidentWeights(context, own)
            resident.layouts |= {weight: rng.choice(layouts(own, weight)) for weight in NAMES}
            resident.upload([*NAMES, *NAMES])
            before = context.memory.used
            resident.upload(NAMES)
            assert context.memory.used == before, "what is there is not uploaded again"
            for weight in NAMES:
                layout = Layout.parse(resident.layouts[weight])
                for part, array in pack(own.matrix(weight), layout).items():
                    tensor = resident.part(weight, part)
                    assert tensor.memory == layout.memory_of(part)
                    assert tensor.read().tobytes() == array.tobytes()


def test_a_weight_that_does_not_fit_is_named() -> None:
    own = weights("llama2/q4_0")
    with Context(clk_engine.a_device(), budget=40_000) as context:
        resident = ResidentWeights(context, own)
        resident.layouts |= {weight: layouts(own, weight)[0] for weight in NAMES}
        with pytest.raises(OutOfDeviceMemory, match=r"weight blk\.0\.\w+\.[qs] takes .* not fit"):
            resident.upload(NAMES)
        assert context.memory.used <= 40_000
