"""The bytes of quantised weights in model files, taken apart into planes.

Block layouts are those of the GGUF specification's types: 32 columns with float16 scales, and the K
formats' 256 columns, whose scales are small integers times a float16. Nothing is dequantised here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .coding import BLOCK, CODINGS, FLOATS, SUPER, Coding, coding_of
from .planes import Planes, spread_1, spread_2
from .types import Array

#: iq4_nl: the number that each index stands for.
IQ4_NL = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
#: For each byte of two indices their numbers, that of the upper one in the upper byte.
IQ4_NL_PAIRS = (IQ4_NL[:, None].astype(np.int16) << 8 | IQ4_NL.view(np.uint8)).reshape(-1)

#: What a decoder makes of blocks: low, high, scales, super-scales; any shape, row by row.
Parts = tuple[Array, Array | None, Array, Array | None]


@dataclass(frozen=True)
class Format:
    """``nbytes``: of a block. ``scalars``: offsets of its float16 numbers, scale before minimum."""

    nbytes: int
    decode: Callable[[Array], Parts]
    scalars: tuple[int, ...]


def row_bytes(dtype: str, cols: int) -> int:
    """Bytes of a row. Raises ``ValueError`` where it would end within a block."""
    coding = coding_of(dtype)
    if coding is None:
        return cols * np.dtype(FLOATS[dtype]).itemsize
    if cols % coding.columns:
        raise ValueError(f"{dtype} needs a multiple of {coding.columns} columns, not {cols}")
    if dtype in FORMATS:
        return cols // coding.columns * FORMATS[dtype].nbytes
    return sum(size * np.dtype(kind).itemsize for size, kind in plane_sizes(coding, cols).values())


def plane_sizes(coding: Coding, cols: int) -> dict[str, tuple[int, str]]:
    """What each plane has in a row of ``cols`` columns: numbers, and their NumPy type."""
    blocks, form = cols // BLOCK, {"h": "float16", "f": "float32", "k": "int8"}
    sizes = {"low": (cols, "int8") if coding.bits == 8 else (cols // 2, "uint8")}
    if coding.high:
        sizes["high"] = (4 * coding.high * blocks, "uint8")
    sizes["scales"] = (coding.parts * blocks, form[coding.scales])
    if coding.scales == "k":
        sizes["supers"] = (coding.scalars * cols // SUPER, "float32")
    return sizes


def decode(dtype: str, cols: int, data: Array) -> Planes:
    """Planes of ``uint8 [rows, bytes of a row]`` of a quantised dtype."""
    coding = coding_of(dtype)
    if coding is None:
        raise ValueError(f"{dtype} has no codes")
    rows = data.shape[0]
    if dtype not in FORMATS:
        return _decode_mixed(coding, cols, data)
    block = FORMATS[dtype]
    low, *rest = block.decode(data.reshape(rows, cols // coding.columns, block.nbytes))
    if coding.bits == 8:
        low = low.view(np.int8)
    high, scales, supers = (None if part is None else part.reshape(rows, -1) for part in rest)
    assert scales is not None
    return Planes(coding, low.reshape(rows, -1), high, scales, supers)


def encode_mixed(planes: Planes) -> Array:
    """``uint8 [rows, bytes of a row]`` of a mixed dtype: its planes, one behind the other."""
    parts = (planes.low, planes.high, planes.scales, planes.supers)
    arrays = [np.ascontiguousarray(part).view(np.uint8) for part in parts if part is not None]
    return np.concatenate(arrays, axis=1)


def _decode_mixed(coding: Coding, cols: int, data: Array) -> Planes:
    found: dict[str, Array] = {}
    start = 0
    for name, (size, kind) in plane_sizes(coding, cols).items():
        stop = start + size * np.dtype(kind).itemsize
        found[name] = np.ascontiguousarray(data[:, start:stop]).view(kind)
        start = stop
    return Planes(coding, found["low"], found.get("high"), found["scales"], found.get("supers"))


# -- fields of blocks --------------------------------------------------------------------------
#
# NumPy is slow where the innermost axis is short. So fields of a block are moved as single elements
# of their size (void types), and arithmetic runs over all blocks at once, four bytes in one number
# where they don't disturb each other.


def _take(blocks: Array, start: int, size: int) -> Array:
    """Bytes ``start`` to ``start + size`` of each block ``uint8 [..., bytes]``, contiguous."""
    itemsize = blocks.shape[-1]
    field = np.dtype(
        {"names": ["f"], "formats": [f"V{size}"], "offsets": [start], "itemsize": itemsize}
    )
    return (
        np.ascontiguousarray(blocks.view(field)["f"])
        .view(np.uint8)
        .reshape(*blocks.shape[:-1], size)
    )


def _weave(parts: Sequence[Array]) -> Array:
    """``[..., size]`` of each part side by side: ``[..., parts, size]``."""
    first = parts[0]
    out = np.empty((*first.shape[:-1], len(parts)), f"V{first.shape[-1]}")
    for i, part in enumerate(parts):
        out[..., i] = part.view(out.dtype)[..., 0]
    return out.view(np.uint8).reshape(*first.shape[:-1], len(parts), -1)


def _halves(packed: Array) -> tuple[Array, Array]:
    """The first 16 and the last 16 of each 32 bytes, twice ``[..., n / 32, 16]``."""
    blocks = packed.reshape(*packed.shape[:-1], -1, BLOCK)
    return _take(blocks, 0, 16), _take(blocks, 16, 16)


def _floats(blocks: Array, start: int, count: int) -> Array:
    return _take(blocks, start, 2 * count).view(np.float16)


# -- blocks of 32 ------------------------------------------------------------------------------


def _q8_0(blocks: Array) -> Parts:
    return _take(blocks, 2, 32), None, _floats(blocks, 0, 1), None


def _q4_0(blocks: Array) -> Parts:
    return _take(blocks, 2, 16), None, _floats(blocks, 0, 1), None


def _q4_1(blocks: Array) -> Parts:
    return _take(blocks, 4, 16), None, _floats(blocks, 0, 2), None


def _q5_0(blocks: Array) -> Parts:
    return _take(blocks, 6, 16), _fifth_bits(_take(blocks, 2, 4)), _floats(blocks, 0, 1), None


def _q5_1(blocks: Array) -> Parts:
    return _take(blocks, 8, 16), _fifth_bits(_take(blocks, 4, 4)), _floats(blocks, 0, 2), None


def _fifth_bits(bits: Array) -> Array:
    """High plane of 4 bytes in which bit i belongs to column i."""
    both = bits.view(np.uint32)
    plane: Array = _nibbles_apart(both & 0xFFFF) | _nibbles_apart(both >> 16) << 4
    return plane.view(np.uint8)


def _nibbles_apart(words: Array) -> Array:
    """The four nibbles of 16 bits, each into a byte of its own."""
    bytes_apart: Array = (words | words << 8) & 0x00FF00FF
    nibbles: Array = (bytes_apart | bytes_apart << 4) & 0x0F0F0F0F
    return nibbles


def _iq4_nl(blocks: Array) -> Parts:
    both = IQ4_NL_PAIRS[_take(blocks, 2, 16)]
    codes = _weave([both.astype(np.int8), (both >> 8).astype(np.int8)])
    return codes, None, _floats(blocks, 0, 1), None


# -- blocks of 256 -----------------------------------------------------------------------------


def _q2_k(blocks: Array) -> Parts:
    first, last = _halves(_take(blocks, 16, 64))
    pairs = [first >> s & 3 | (last >> s & 3) << 4 for s in (0, 2, 4, 6)]
    scales = _take(blocks, 0, 16)
    return _weave(pairs), None, _by_block(scales & 15, scales >> 4), _supers(blocks, 80)


def _q3_k(blocks: Array) -> Parts:
    # Two bits of a code, and a third one that counts 4: of 32 bytes a bit for each of 8 blocks.
    halves = []
    for low, top in zip(_halves(_take(blocks, 32, 64)), _halves(_take(blocks, 0, 32)), strict=True):
        third = _weave([top[..., 0, :] & 15, top[..., 0, :] >> 4])
        halves.append([low >> 2 * s & 3 | (third >> s & 1) << 2 for s in range(4)])
    pairs = [first | last << 4 for first, last in zip(*halves, strict=True)]
    packed = _take(blocks, 96, 12).view(np.uint32)
    nibbles, rest = packed[..., :2], packed[..., 2:]
    four = np.concatenate([nibbles & 0x0F0F0F0F, nibbles >> 4 & 0x0F0F0F0F], axis=-1)
    two = np.concatenate([rest >> s & 0x03030303 for s in (0, 2, 4, 6)], axis=-1)
    scales = (four | two << 4).view(np.int8) - np.int8(32)
    return _weave(pairs), None, scales, _floats(blocks, 108, 1).astype(np.float32)


def _q4_k(blocks: Array) -> Parts:
    return _nibbles(_take(blocks, 16, 128)), None, _six_bits(blocks), _supers(blocks, 0)


def _q5_k(blocks: Array) -> Parts:
    bits = _take(blocks, 16, 32)
    high = _weave([spread_1(bits >> s & 1) for s in range(8)])
    return _nibbles(_take(blocks, 48, 128)), high, _six_bits(blocks), _supers(blocks, 0)


def _q6_k(blocks: Array) -> Parts:
    # Low nibbles of 64 bytes are columns 0 to 63 of each 128, upper ones those behind.
    first, last = _halves(_take(blocks, 0, 128))
    halves = (*first.shape[:-2], 2, 32)
    low, up = first & 15 | last << 4, first >> 4 | last & 0xF0
    bits = _take(blocks, 128, 64).reshape(halves)
    high = _weave([spread_2(bits >> s & 3) for s in (0, 2, 4, 6)])
    scales = _take(blocks, 192, 16).view(np.int8)
    supers = _floats(blocks, 208, 1).astype(np.float32)
    return _weave([low.reshape(halves), up.reshape(halves)]), high, scales, supers


def _nibbles(packed: Array) -> Array:
    """Pairs of 128 bytes, 32 of which hold one block in lower nibbles and the next in upper."""
    first, last = _halves(packed)
    return _weave([first & 15 | last << 4, first >> 4 | last & 0xF0])


def _six_bits(blocks: Array) -> Array:
    """Scales and minima ``int8 [..., 8, 2]`` of the 12 bytes at 4: three fields of four."""
    packed = _take(blocks, 4, 12).view(np.uint32)
    first, second, rest = packed[..., 0], packed[..., 1], packed[..., 2]
    four = np.stack(
        [
            first & 0x3F3F3F3F,
            rest & 0x0F0F0F0F | first >> 2 & 0x30303030,
            second & 0x3F3F3F3F,
            rest >> 4 & 0x0F0F0F0F | second >> 2 & 0x30303030,
        ],
        axis=-1,
    )
    both = four.view(np.int8).reshape(*four.shape[:-1], 2, 8)
    return np.stack([both[..., 0, :], both[..., 1, :]], axis=-1)


def _by_block(scales: Array, minima: Array) -> Array:
    """Two of ``[..., 16]`` to ``int8 [..., 8, 2, 2]``: a block's two scales, its two minima."""
    pairs = [part.reshape(*part.shape[:-1], 8, 2) for part in (scales, minima)]
    return _weave(pairs).view(np.int8)


def _supers(blocks: Array, start: int) -> Array:
    """Super-scale and super-minimum, which is subtracted in the format and added here."""
    return _floats(blocks, start, 2).astype(np.float32) * np.array([1, -1], np.float32)


FORMATS = {
    "q8_0": Format(34, _q8_0, (0,)),
    "q4_0": Format(18, _q4_0, (0,)),
    "q4_1": Format(20, _q4_1, (0, 2)),
    "q5_0": Format(22, _q5_0, (0,)),
    "q5_1": Format(24, _q5_1, (0, 2)),
    "q2_k": Format(84, _q2_k, (80, 82)),
    "q3_k": Format(110, _q3_k, (108,)),
    "q4_k": Format(144, _q4_k, (0, 2)),
    "q5_k": Format(176, _q5_k, (0, 2)),
    "q6_k": Format(210, _q6_k, (208,)),
    "iq4_nl": Format(18, _iq4_nl, (0,)),
}
assert FORMATS.keys() == CODINGS.keys()
