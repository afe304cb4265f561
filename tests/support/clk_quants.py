"""Random weights in the file formats that the ``gguf`` package reads but can't write.

Codes are random bytes; only the float16 scales of a block are chosen, so that values spread as
asked. Offsets within a block are those of the GGUF specification's block formats.
"""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

#: Where the scale of a block lies; where its minimum lies, if it has one, and the minimum in scales
#: that centres the values.
_SCALES: dict[Kind, tuple[int, int | None, float]] = {
    Kind.Q2_K: (80, 82, 1.5),
    Kind.Q3_K: (108, None, 0),
    Kind.Q4_K: (0, 2, 7.5),
    Kind.Q5_K: (0, 2, 15.5),
    Kind.Q6_K: (208, None, 0),
    Kind.IQ4_NL: (0, None, 0),
}


def quantised(values: np.ndarray, kind: Kind) -> np.ndarray:
    """``values`` (float32 ``[rows, columns]``) in a file format.

    Formats that the package can't write get random numbers that spread as ``values`` do.
    """
    if kind not in _SCALES:
        return gguf.quants.quantize(values, kind)
    rows, columns = values.shape
    rng = np.random.default_rng([rows, columns, kind])
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, columns // size, nbytes), np.uint8)
    # Of unlike size; and of either sign where no minimum makes that pointless.
    sizes = rng.uniform(0.5, 1.5, (rows, columns // size))
    if _SCALES[kind][1] is None:
        sizes *= rng.choice([-1, 1], sizes.shape)
    _set_scales(blocks, kind, sizes)
    sample = gguf.quants.dequantize(blocks[:64].reshape(min(rows, 64), -1), kind)
    _set_scales(blocks, kind, sizes * float(values.std() / sample.std()))
    return blocks.reshape(rows, -1)


def _set_scales(blocks: np.ndarray, kind: Kind, scales: np.ndarray) -> None:
    scale, minimum, ratio = _SCALES[kind]
    blocks[..., scale : scale + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
    if minimum is not None:
        minima = (scales * ratio).astype(np.float16)
        blocks[..., minimum : minimum + 2] = minima[..., None].view(np.uint8)
