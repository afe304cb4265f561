"""GGUF files: agreement with the gguf package, and damaged files of every kind."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clk_damage
from clk_models import write_model
from clkiln.errors import ModelError
from clkiln.inference import gguf as ours
from clkiln.inference.config import ModelConfig
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.tokenizer import Tokenizer

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0")


def mixed(name: str) -> str:
    return TYPES[sum(name.encode()) % len(TYPES)]


# -- what is read ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*TYPES, mixed], ids=[*TYPES, "mixed"])
def test_agrees_with_the_gguf_package(tmp_path: Path, dtype: Any) -> None:
    path = write_model(tmp_path / "m.gguf", dtype=dtype, tied=False, rope_factors=True)
    reference = gguf.GGUFReader(path)
    file = GGUFFile.open(path)
    assert list(file.tensors) == [tensor.name for tensor in reference.tensors]
    for tensor in reference.tensors:
        info, view = file.tensors[tensor.name], file.raw(tensor.name)
        assert info.dtype == tensor.tensor_type.name.lower()
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert view.tobytes() == tensor.data.tobytes()
        assert view.shape[0] == info.shape[0]
        assert not view.flags.owndata and not view.flags.writeable
    for name, field in reference.fields.items():
        if not name.startswith("GGUF."):
            expected, found = field.contents(), file.metadata[name]
            assert (
                list(found) == list(expected) if isinstance(expected, list) else found == expected
            )


def test_float_tensors_come_typed(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", dtype="f16")
    file = GGUFFile.open(path)
    assert file.raw("token_embd.weight").dtype == np.float16
    assert file.raw("token_embd.weight").shape == (515, 96)
    assert file.raw("output_norm.weight").dtype == np.float32
    assert file.raw("output_norm.weight").shape == (96,)


def test_block_tensors_come_as_rows_of_bytes(tmp_path: Path) -> None:
    file = GGUFFile.open(write_model(tmp_path / "m.gguf", dtype="q4_1"))
    assert file.raw("blk.0.ffn_down.weight").shape == (96, 160 // 32 * 20)
    assert file.raw("blk.0.ffn_down.weight").dtype == np.uint8


def test_type_table_is_that_of_the_gguf_package() -> None:
    # Q8_1 exists between two operations only and is never stored.
    expected = {
        int(kind): (kind.name.lower(), *sizes)
        for kind, sizes in gguf.GGML_QUANT_SIZES.items()
        if kind.name != "Q8_1"
    }
    assert {number: row for number, row in ours._TYPES.items() if number in expected} == {
        number: row for number, row in expected.items() if number in ours._TYPES
    }
    assert {"f32", "f16", "q8_0", "q4_0", "q4_1"} <= {row[0] for row in ours._TYPES.values()}


def test_views_outlive_the_file(tmp_path: Path) -> None:
    with GGUFFile.open(write_model(tmp_path / "m.gguf")) as file:
        view = file.raw("output_norm.weight")
    expected = view.copy()
    assert np.array_equal(view, expected)
    with pytest.raises(ModelError, match="closed"):
        file.raw("output_norm.weight")
    with pytest.raises(ModelError, match="closed"):
        file.digest()


def test_digest_is_stable_and_sees_metadata_and_size(tmp_path: Path) -> None:
    first = GGUFFile.open(write_model(tmp_path / "a.gguf"))
    again = GGUFFile.open(write_model(tmp_path / "b.gguf"))
    other = GGUFFile.open(write_model(tmp_path / "c.gguf", rope_theta=5e5))
    longer = tmp_path / "d.gguf"
    longer.write_bytes((tmp_path / "a.gguf").read_bytes() + bytes(32))
    digests = [first.digest(), other.digest(), GGUFFile.open(longer).digest()]
    assert first.digest() == again.digest()
    assert len(set(digests)) == 3


# -- what is refused -------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def tensor(name: str, dims: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    head = text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
    return head + struct.pack("<IQ", kind, offset)


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def build(
    pairs: list[bytes],
    tensors: list[bytes],
    data: int = 64,
    counts: tuple[int, int] | None = None,
    head: bytes = b"GGUF\3\0\0\0",
) -> bytes:
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    header = head + struct.pack("<QQ", n_tensors, n_pairs) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


def test_the_smallest_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(build([number("a", 7)], [tensor("t"), tensor("u", offset=32)]))
    file = GGUFFile.open(path)
    assert dict(file.metadata) == {"a": 7}
    assert file.raw("u").tolist() == [0.0] * 8
    with pytest.raises(ModelError, match="no tensor v"):
        file.raw("v")


HUGE = 1 << 60
STRINGS = text("a") + struct.pack("<IIQ", 9, 8, HUGE)
NUMBERS = text("a") + struct.pack("<IIQ", 9, 10, HUGE)
NESTED = text("a") + struct.pack("<IIQ", 9, 9, 1)

DAMAGED = {
    "foreign": (b"PK\3\4" + bytes(100), "not a GGUF file"),
    "three bytes": (b"GGU", "not a GGUF file"),
    "magic only": (b"GGUF", "truncated"),
    "version 1": (build([], [], head=b"GGUF\1\0\0\0"), "GGUF version 1"),
    "big-endian": (build([], [], head=b"GGUF\0\0\0\3"), "big-endian"),
    "tensor count": (build([], [], counts=(HUGE, 0)), "truncated"),
    "pair count": (build([], [], counts=(0, HUGE)), "truncated"),
    "string length": (build([struct.pack("<Q", HUGE)], [], counts=(0, 1)), "truncated"),
    "string array": (build([STRINGS], []), "truncated"),
    "number array": (build([NUMBERS], []), "truncated"),
    "nested array": (build([NESTED], []), "array"),
    "value type": (build([text("a") + struct.pack("<I", 99)], []), "metadata type 99"),
    "not UTF-8": (build([struct.pack("<Q", 1) + b"\xff" + bytes(8)], []), "UTF-8"),
    "duplicate key": (build([number("a", 1), number("a", 1)], []), "'a' is there twice"),
    "duplicate tensor": (build([], [tensor("t"), tensor("t", offset=32)]), "'t' is there twice"),
    "overlap": (build([], [tensor("t"), tensor("u")]), "'t' and 'u' overlap"),
    "misaligned": (build([], [tensor("t", offset=8)]), "not aligned"),
    "alignment 0": (build([number("general.alignment", 0)], [tensor("t")]), "alignment 0"),
    "no dimension": (build([], [tensor("t", dims=())]), "0 dimensions"),
    "five dimensions": (build([], [tensor("t", dims=(1,) * 5)]), "5 dimensions"),
    "empty shape": (build([], [tensor("t", dims=(0, 4))]), "cannot have the shape"),
    "broken block": (build([], [tensor("t", dims=(33,), kind=2)]), "cannot have the shape"),
    "huge tensor": (build([], [tensor("t", dims=(HUGE, HUGE))]), "truncated: tensor 't'"),
    "past the end": (build([], [tensor("t", offset=64)]), "truncated: tensor 't'"),
    "unknown type": (build([], [tensor("t", kind=77)]), "tensor t has type 77"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    data, message = DAMAGED[case]
    path = tmp_path / "broken.gguf"
    unsupported = case in ("version 1", "big-endian", "unknown type")
    clk_damage.refuses(GGUFFile.open, path, data, message, unsupported=unsupported)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    clk_damage.refuses_what_is_no_file(GGUFFile.open, tmp_path)


# -- random damage -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    write_model(path, layers=1, hidden=32, intermediate=32, heads=2, kv_heads=1, vocab=262)
    return path.read_bytes(), path.with_name("broken.gguf")


def load(path: Path) -> None:
    """All that reads a header; touching every tensor shows that none leads out of the file."""
    file = GGUFFile.open(path)
    for name in file.tensors:
        file.raw(name).tobytes()
    ModelConfig.from_gguf(file)
    Tokenizer.from_gguf(file.metadata)


@settings(max_examples=150, deadline=2000)
@given(data=st.data())
def test_a_truncated_file_is_always_refused(sound: tuple[bytes, Path], data: st.DataObject) -> None:
    content, path = sound
    path.write_bytes(content)
    end = max(info.offset + info.nbytes for info in GGUFFile.open(path).tensors.values())
    cut = data.draw(st.integers(0, end - 1))
    path.write_bytes(content[:cut])
    with pytest.raises(ModelError):
        GGUFFile.open(path)


@settings(max_examples=400, deadline=2000)
@given(data=st.data())
def test_flipped_bytes_raise_nothing_but_model_errors(
    sound: tuple[bytes, Path], data: st.DataObject
) -> None:
    content, path = sound
    broken = bytearray(content)
    # Most of a header is vocabulary; its start is where the structure lies.
    places = st.one_of(st.integers(0, 900), st.integers(0, len(content) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        broken[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(broken)
    try:
        load(path)
    except ModelError as error:
        assert "\n" not in str(error)
