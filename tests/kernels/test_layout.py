"""Layouts: every number of a weight found again in one, and nothing else there.

Unpacking is written here from the layouts' definition, element by element, and shares nothing with
``pack``.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_cases import DTYPES_OF_MIXTURES
from clkiln.kernels.coding import FLOATS, STORED_BITS, coding_of
from clkiln.kernels.layout import Layout, pack
from clkiln.kernels.types import Array
from clkiln.kernels.weights import DTYPES, Matrix

quick = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([*DTYPES, *DTYPES_OF_MIXTURES])
BLOCK, SUPER = 32, 256


@st.composite
def layouts(draw: st.DrawFn, dtype: str | None = None) -> Layout:
    dtype = dtype or draw(dtypes)
    coding = coding_of(dtype)
    image = draw(st.booleans())
    least = 16 if image and coding else 8 if image and dtype == "bf16" else 4
    rows = draw(st.sampled_from([size for size in (4, 8, 16) if size >= least]))
    scale_bits = draw(st.sampled_from(STORED_BITS[coding.scales])) if coding else 0
    width = draw(st.sampled_from((1, 3, 64, 2048))) if image else 0
    return Layout(
        dtype, "image2d" if image else "buffer", rows, scale_bits, draw(st.booleans()), width
    )


@quick
@given(layouts())
def test_layout_text_comes_back(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout


@quick
@given(st.text("q4_1f2bufer imag2ds16wpad", max_size=24) | layouts().map(lambda x: f"{x} "))
def test_only_canonical_layouts_are_read(text: str) -> None:
    try:
        layout = Layout.parse(text)
    except ValueError:
        return
    assert str(layout) == text


class Unpacker:
    """Reads single numbers of a packed matrix, and remembers which places it has read."""

    def __init__(self, parts: dict[str, Array], layout: Layout, rows: int, cols: int) -> None:
        self.layout, self.rows, self.cols = layout, rows, cols
        self.flat = {name: part.reshape(-1) for name, part in parts.items()}
        coding = self.coding = coding_of(layout.dtype)
        if coding:
            self.flat["q"] = self.flat["q"].view(np.int8 if coding.bits == 8 else np.uint8)
        if "h" in self.flat:
            self.flat["h"] = self.flat["h"].view(np.uint8)
        if layout.dtype == "bf16":
            self.flat["q"] = self.flat["q"].view(np.uint16)
        self.read = {name: np.zeros(part.size, bool) for name, part in self.flat.items()}

    def place(self, row: Array) -> tuple[Array, Array]:
        """Row group and lane of a row. Paired: gate groups at even places, up groups at odd."""
        size = self.layout.rows
        if not self.layout.paired:
            return row // size, row % size
        half = self.rows // 2
        return row % half // size * 2 + row // half, row % half % size

    def number(self, part: str, row: Array, index: Array, per_row: int) -> Array:
        """Number ``index`` of a row of which ``per_row`` are kept."""
        group, lane = self.place(row)
        where = (group * per_row + index) * self.layout.rows + lane
        self.read[part][where] = True
        return self.flat[part][where]

    def factor(self, row: Array, col: Array, which: int) -> Array:
        """The scale (0) or the minimum (1) of a column."""
        assert self.coding is not None
        halves, scalars = self.coding.halves, self.coding.scalars
        blocks, supers = self.cols // BLOCK, self.cols // SUPER
        index = (col // BLOCK * scalars + which) * halves + col % BLOCK // (BLOCK // halves)
        scale = self.number("s", row, index, blocks * scalars * halves).astype(np.float32)
        if self.layout.scale_bits != 8:
            return scale
        index = col // SUPER * scalars + which
        return scale * self.number("d", row, index, supers * scalars)

    def code(self, row: Array, col: Array) -> Array:
        assert self.coding is not None
        if self.coding.bits == 8:
            return self.number("q", row, col, self.cols).astype(np.float32)
        pair = col // BLOCK * 16 + col % 16
        upper = col % BLOCK // 16
        code = self.number("q", row, pair, self.cols // 2) >> (4 * upper) & 15
        high = self.coding.bits - 4
        if high > 0:
            per = 4 // high
            plane = self.number("h", row, pair // per, self.cols // 2 // per)
            code = code + 16 * (plane >> (4 * upper + high * (pair % per)) & (2**high - 1))
        return code.astype(np.float32)

    def element(self, row: Array, col: Array) -> Array:
        """The weight at (row, col), which NumPy broadcasts."""
        if self.coding is None:
            number = self.number("q", row, col, self.cols)
            if self.layout.dtype == "bf16":
                return (number.astype(np.uint32) << 16).view(np.float32)
            return number.astype(np.float32)
        value = (self.code(row, col) - self.coding.zero) * self.factor(row, col, 0)
        return value + self.factor(row, col, 1) if self.coding.minima else value


@settings(max_examples=200, deadline=None, derandomize=True)
@given(layouts(), st.integers(1, 45), st.integers(1, 3), seeds)
def test_every_weight_is_found_and_nothing_else(
    layout: Layout, rows: int, blocks: int, seed: int
) -> None:
    """Exact values, in arrays as the arguments declare them, with zeros where no weight lies."""
    rows += rows % 2 if layout.paired else 0
    cols = blocks * (layout.coding.columns if layout.coding else 7)
    matrix = Matrix.random(layout.dtype, rows, cols, np.random.default_rng(seed))
    parts = pack(matrix, layout)
    declared = {a.name: a for a in layout.arguments("w", rows, matrix.cols)}
    assert list(declared) == [f"w.{part}" for part in parts]
    for part, array in parts.items():
        argument = declared[f"w.{part}"]
        assert (array.shape, array.dtype) == (argument.shape, np.dtype(argument.dtype))
        assert argument.memory == layout.memory_of(part)
    unpacker = Unpacker(parts, layout, rows, matrix.cols)
    got = unpacker.element(np.arange(rows)[:, None], np.arange(matrix.cols)[None, :])
    assert np.array_equal(got, matrix.dequantise())
    for part, flat in unpacker.flat.items():
        assert not flat[~unpacker.read[part]].any()


def test_big_weights_are_packed_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pieces, the result is the same."""
    rng = np.random.default_rng(0)
    for dtype, paired in (("q6_k", True), ("mix8g32h", False), ("f16", True)):
        matrix = Matrix.random(dtype, 74, 256, rng)
        layout = Layout(dtype, "buffer", 8, 0 if dtype in FLOATS else 32, paired)
        whole = pack(matrix, layout)
        monkeypatch.setattr("clkiln.kernels.layout.CHUNK", 5000)
        pieces = pack(matrix, layout)
        monkeypatch.undo()
        assert all(np.array_equal(whole[part], pieces[part]) for part in whole)


@quick
@given(dtypes, layouts())
def test_other_dtypes_are_refused(dtype: str, layout: Layout) -> None:
    matrix = Matrix.random(dtype, 2, 256, np.random.default_rng(0))
    if dtype == layout.dtype:
        pack(matrix, layout)
    else:
        with pytest.raises(ValueError, match=f"a {dtype} matrix can't be packed as"):
            pack(matrix, layout)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_leaves_the_matrix_alone(dtype: str) -> None:
    matrix = Matrix.random(dtype, 5, 256, np.random.default_rng(0))
    before = matrix.data.tobytes()
    matrix.data.flags.writeable = False  # as a memory-mapped file is
    coding = coding_of(dtype)
    for bits in STORED_BITS[coding.scales] if coding else (0,):
        pack(matrix, Layout(dtype, "buffer", 4, bits))
        pack(matrix, Layout(dtype, "image2d", 16, bits, False, 64))
    assert matrix.data.tobytes() == before


def test_weights_need_not_be_aligned() -> None:
    """Tensors of a file begin where its header ends."""
    for dtype in ("q5_0", "q6_k", "iq4_nl"):
        matrix = Matrix.random(dtype, 5, 256, np.random.default_rng(0))
        raw = np.frombuffer(b"\0" + matrix.data.tobytes(), np.uint8, offset=1)
        shifted = Matrix(dtype, 256, raw.reshape(matrix.data.shape))
        assert np.array_equal(shifted.dequantise(), matrix.dequantise())
