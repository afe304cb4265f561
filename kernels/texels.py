"""Variants that read their inputs as RGBA texels: image buffers, views of what lies in a buffer.

A GPU reads images through its texture units, which have a cache of their own; an image buffer
(``image1d_buffer_t``) is a view of a tensor's own memory, so such a variant needs no conversion and
no second copy. Outputs are written to the buffers themselves. The kernel's side is ``texels.clh``.
"""

from __future__ import annotations

from .types import Config, Memory, Value, Variant

#: The feature of a device with image buffers (OpenCL C 1.2).
IMAGE_BUFFERS = "image_buffers"
TEXELS = Variant("image", "image", frozenset({IMAGE_BUFFERS}))
BUFFER_AND_TEXELS = (Variant("buffer", "buffer"), TEXELS)


def input_memory(config: Config) -> Memory:
    """As what the inputs of a configuration are seen."""
    return "image1d" if config.variant == TEXELS.name else "buffer"


def texel_defines(config: Config) -> dict[str, Value]:
    """The macro that makes a kernel read its inputs as texels."""
    return {"IMAGE": 1} if config.variant == TEXELS.name else {}


def texel_misfit(config: Config, *rows: int) -> str | None:
    """A reason if vectors of ``V`` elements don't begin at multiples of ``V`` in every row.

    An image has no address to add to: a row whose length ``V`` does not divide begins in the middle
    of a vector. Single elements are picked out of their texel, so with ``V`` 1 all is well.
    """
    if config.variant != TEXELS.name:
        return None
    for row in rows:
        if row % config["V"]:
            return f"rows of {row} in texel vectors of {config['V']}"
    return None
