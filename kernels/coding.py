"""How numbers of a weight are coded, apart from any file format: all that a kernel knows of them.

A quantised weight is blocks of 32 columns. A code of some bits stands for ``(code - zero) * scale``
or ``code * scale + minimum``; a block has one scale, or two, one for each half of it. File formats
(``q4_k``) map to codings; so does what holds parts of several formats stacked, whose dtype is the
coding's own name (``mix8g32h``). Formats are those of the GGUF specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

#: Columns of a block, and of what shares a super-scale in the K formats.
BLOCK = 32
SUPER = 256

#: Float dtypes and the NumPy types that hold them; bfloat16 is the upper half of a float32.
FLOATS = {"f32": "float32", "f16": "float16", "bf16": "uint16"}

#: Where scales come from: float16 numbers (h), float32 numbers (f), or signed bytes times a float32
#: super-scale of 256 columns (k).
ScaleForm = Literal["h", "f", "k"]
#: In how many bits a layout may store a scale without loss. A byte times a super-scale fits into a
#: float32, but not into a float16.
STORED_BITS: dict[ScaleForm, tuple[int, ...]] = {"h": (16, 32), "f": (32,), "k": (8, 32)}


@dataclass(frozen=True)
class Coding:
    """Codes of ``bits`` bits: signed if 8, else from 0 up, where ``zero`` stands for zero.

    ``minima``: each scale has a minimum, and ``zero`` is 0. ``halves``: scales of a block.
    """

    bits: int
    zero: int = 0
    minima: bool = False
    halves: int = 1
    scales: ScaleForm = "h"

    @property
    def stored(self) -> int:
        """Bits that a layout keeps of a code: narrow ones lie in nibbles."""
        return max(self.bits, 4)

    @property
    def high(self) -> int:
        """Bits of a code that lie in the high plane, behind the nibble."""
        return self.stored - 4 if self.stored < 8 else 0

    @property
    def scalars(self) -> int:
        """Numbers of one scale: itself, and its minimum."""
        return 2 if self.minima else 1

    @property
    def parts(self) -> int:
        """Scales and minima of one block."""
        return self.scalars * self.halves

    @property
    def columns(self) -> int:
        """What the number of columns must be a multiple of."""
        return SUPER if self.scales == "k" else BLOCK

    @property
    def mixed(self) -> str:
        """The dtype of a weight that has this coding and no file format."""
        offset = "m" if self.minima else f"z{self.zero}" if self.zero else ""
        return f"mix{self.bits}{offset}g{BLOCK // self.halves}{self.scales}"


#: Coding of each format. q2_k and q3_k codes are 2 and 3 bits wide; iq4_nl's indices are looked up
#: when it is packed, and then are q8_0's codes.
CODINGS = {
    "q8_0": Coding(8),
    "q4_0": Coding(4, zero=8),
    "q4_1": Coding(4, minima=True),
    "q5_0": Coding(5, zero=16),
    "q5_1": Coding(5, minima=True),
    "q2_k": Coding(2, minima=True, halves=2, scales="k"),
    "q3_k": Coding(3, zero=4, halves=2, scales="k"),
    "q4_k": Coding(4, minima=True, scales="k"),
    "q5_k": Coding(5, minima=True, scales="k"),
    "q6_k": Coding(6, zero=32, halves=2, scales="k"),
    "iq4_nl": Coding(8),
}

#: Every dtype that a file's weight may have.
DTYPES = (*FLOATS, *CODINGS)

_MIXED = re.compile(r"mix([2-68])(?:(m)|z(\d+))?g(16|32)([hfk])")


@cache
def coding_of(dtype: str) -> Coding | None:
    """The coding of a dtype, None for floats. Raises ``ValueError`` for what is no dtype."""
    if dtype in FLOATS:
        return None
    if dtype in CODINGS:
        return CODINGS[dtype]
    match = _MIXED.fullmatch(dtype)
    if match:
        bits, minima, zero, span, scales = match.groups()
        form: ScaleForm = "h" if scales == "h" else "k" if scales == "k" else "f"
        coding = Coding(int(bits), int(zero or 0), bool(minima), BLOCK // int(span), form)
        if coding.mixed == dtype:
            return coding
    raise ValueError(f"no weight dtype {dtype!r}; there are {', '.join(DTYPES)}")


def common_dtype(dtypes: Iterable[str]) -> str:
    """The dtype that holds rows of all ``dtypes`` exactly: the smallest coding that does.

    Floats of several kinds, or a float and a quantised one, meet in float32.
    """
    names = sorted(set(dtypes))
    codings = [coding_of(name) for name in names]
    if len(names) == 1:
        return names[0]
    quantised = [coding for coding in codings if coding]
    return _common(quantised).mixed if len(quantised) == len(codings) else "f32"


def _common(codings: list[Coding]) -> Coding:
    forms = {coding.scales for coding in codings}
    form: ScaleForm = forms.pop() if len(forms) == 1 else "f"
    halves = max(coding.halves for coding in codings)
    minima = any(coding.minima for coding in codings)
    bits = max(coding.bits for coding in codings)
    zero = 0
    if not minima and bits < 8:
        # Codes shift, so that all have the same zero.
        zero = max(coding.zero for coding in codings)
        most = max((1 << coding.bits) - 1 + zero - coding.zero for coding in codings)
        bits = most.bit_length()
    elif bits < 8 and form == "h" and any(coding.zero for coding in codings):
        form = "f"  # a zero becomes a minimum, -zero * scale, which may leave float16's range
    return Coding(bits, zero, minima, halves, form)
