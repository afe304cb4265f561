"""Variants that read their inputs as RGBA texels: image buffers, views of what lies in a buffer.

A GPU reads images through its texture units, which have a cache of their own; an image buffer
(``image1d_buffer_t``) is a view of a tensor's own memory, so such a variant needs no conversion and
no second copy. Outputs are written to the buffers themselves. The kernel's side is ``texels.clh``.
"""

from __future__ import annotations

from .sizes import WIDTHS, dividing
from .types import Config, Memory, Value, Variant

#: The feature of a device with image buffers (OpenCL C 1.2).
IMAGE_BUFFERS = "image_buffers"
TEXELS = Variant("image", "image", frozenset({IMAGE_BUFFERS}))
#: Widths of one and two texels; beyond, a vector is just more reads.
TEXEL_WIDTHS = (4, 8)
BUFFER_AND_TEXELS = (Variant("buffer", "buffer"), TEXELS)


def input_memory(config: Config) -> Memory:
    """As what the inputs of a configuration are seen."""
    return "image1d" if config.variant == TEXELS.name else "buffer"


def texel_defines(config: Config) -> dict[str, Value]:
    """The macro that makes a kernel read its inputs as texels."""
    return {"IMAGE": 1} if config.variant == TEXELS.name else {}


def vector_widths(variant: Variant, *rows: int) -> tuple[int, ...]:
    """Vector widths that a search may try for inputs with rows of so many elements.

    An image has no address to add to, so a vector may not begin in the middle of a texel: the width
    divides every row. Narrower ones than a texel would read each texel again for every part of it,
    and are for rows that are no whole texels. From a buffer any width can be read at any place.
    """
    if variant != TEXELS:
        return WIDTHS
    fitting = dividing(WIDTHS, *rows)
    return dividing(TEXEL_WIDTHS, *rows) or (max(fitting),)
