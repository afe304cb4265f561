"""Safetensors files: agreement with the library that writes them, and damage of every kind."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import clk_damage
from clk_hf import write_tensors
from clkiln.errors import ModelError
from clkiln.inference.safetensors import MAX_HEADER, SafetensorsFile

NUMPY = {"f32": np.float32, "f16": np.float16}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of odd sizes: a vector, matrices, and names that need escapes."""
    rng = np.random.default_rng(seed)
    names = ("a.weight", 'b "quoted" é', "c", "d.bias")
    shapes = ((7,), (3, 5), (1, 1), (33, 2))
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in zip(names, shapes, strict=True)
    }


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_agrees_with_the_library(tmp_path: Path, dtype: str) -> None:
    write_tensors(tmp_path, tensors(), dtype, 1)
    file = SafetensorsFile.open(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as reference:
        assert set(file.tensors) == set(reference.keys())
        for name, info in file.tensors.items():
            view = file.raw(name)
            assert list(info.shape) == reference.get_slice(name).get_shape()
            assert (info.dtype, view.shape, view.nbytes) == (dtype, info.shape, info.nbytes)
            assert not view.flags.owndata and not view.flags.writeable
            if dtype in NUMPY:
                assert (view == reference.get_tensor(name)).all()
                assert view.dtype == NUMPY[dtype]


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    write_tensors(tmp_path, tensors(), "bf16", 1)
    file = SafetensorsFile.open(tmp_path / "model.safetensors")
    for name, values in tensors().items():
        bits = file.raw(name).astype(np.uint32) << 16
        assert np.allclose(bits.view(np.float32), values, rtol=2**-8, atol=0)


def test_digest_sees_header_and_size_alone(tmp_path: Path) -> None:
    digests = []
    for number, (seed, dtype) in enumerate([(0, "f16"), (1, "f16"), (0, "bf16"), (0, "f32")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_tensors(folder, tensors(seed), dtype, 1)
        digests.append(SafetensorsFile.open(folder / "model.safetensors").digest())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# -- what is refused -------------------------------------------------------------------------------


def entry(dtype: str = "F32", shape: Any = (2,), start: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def build(header: Any, data: int = 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


HUGE = 1 << 60
TWICE = b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"t":{}}'

DAMAGED = {
    "four bytes": (b"abcd", "4 bytes are no safetensors"),
    "foreign": (b"PK\3\4" + bytes(100), "no safetensors header"),
    "a pickle": (b"\x80\x02}q\x00" + bytes(100), "no safetensors header"),
    "length past the end": (build({"t": entry()}, length=HUGE), "truncated in its header"),
    "header too long": (
        build(b"{" + b" " * MAX_HEADER + b"}"),
        f"unsupported header of {MAX_HEADER + 2} bytes",
    ),
    "no JSON": (build(b"{nonsense"), "damaged: Expecting"),
    "not UTF-8": (build(b'{"\xff":1}'), "damaged: .*utf-8"),
    "deep": (build(b'{"t":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deep"),
    "long number": (build(b'{"t":' + b"9" * 10_000 + b"}"), "damaged"),
    "twice": (build(TWICE), "'t' is there twice"),
    "a list": (build({"t": [1, 2]}), "'t' is not described"),
    "no shape": (build({"t": {"dtype": "F32", "data_offsets": [0, 8]}}), "'t' has no shape"),
    "negative shape": (build({"t": entry(shape=[-2])}), "'t' has no shape"),
    "fractional shape": (build({"t": entry(shape=[2.0])}), "'t' has no shape"),
    "nine dimensions": (build({"t": entry(shape=[1] * 9, end=4)}), "'t' has no shape"),
    "empty": (build({"t": entry(shape=[0, 4], end=0)}), r"'t' of shape \[0, 4\]"),
    "no places": (build({"t": {"dtype": "F32", "shape": [2]}}), "'t' has no data_offsets"),
    "backwards": (build({"t": entry(start=8, end=0)}), "'t' of shape"),
    "other size": (build({"t": entry(shape=[3])}), r"'t' of shape \[3\] lies at bytes \[0, 8\]"),
    "huge tensor": (build({"t": entry(shape=[HUGE, HUGE])}), "'t' of shape"),
    "past the end": (build({"t": entry(shape=[4], end=16)}), "truncated: tensor 't' ends"),
    "overlap": (build({"t": entry(), "u": entry()}), "'t' and 'u' overlap"),
    "gap": (build({"t": entry(start=8, end=16)}, 16), "the header and 't' leave a gap"),
    "more behind": (build({"t": entry()}, 9), "1 bytes behind the last tensor"),
    "unknown dtype": (build({"t": entry("F33")}), "dtype 'F33', which the format lacks"),
    "other dtype": (build({"t": entry("U8", [8])}), "unsupported dtype U8 of tensor 't'"),
    "control name": (build({"t\n": entry()}), r"'t\\n' is not described"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    data, message = DAMAGED[case]
    path = tmp_path / "broken.safetensors"
    unsupported = case in ("header too long", "other dtype")
    clk_damage.refuses(SafetensorsFile.open, path, data, message, unsupported=unsupported)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    clk_damage.refuses_what_is_no_file(SafetensorsFile.open, tmp_path)


# -- random damage ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    write_tensors(folder, tensors(), "f16", 1)
    return (folder / "model.safetensors").read_bytes(), folder / "broken.safetensors"


@settings(max_examples=100)
@given(data=st.data())
def test_a_truncated_file_is_always_refused(sound: tuple[bytes, Path], data: st.DataObject) -> None:
    content, path = sound
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ModelError):
        SafetensorsFile.open(path)


@settings(max_examples=400)
@given(data=st.data())
def test_flipped_bytes_raise_nothing_but_model_errors(
    sound: tuple[bytes, Path], data: st.DataObject
) -> None:
    content, path = sound
    broken = bytearray(content)
    (length,) = struct.unpack_from("<Q", content)
    for place in data.draw(st.lists(st.integers(0, 8 + length), min_size=1, max_size=4)):
        broken[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(broken)
    try:
        file = SafetensorsFile.open(path)
        for name in file.tensors:
            file.raw(name).tobytes()
    except ModelError as error:
        assert "\n" not in str(error)
