"""Activations as kernels read them: from a buffer, as its texels, or from an image of their own.

An image has a row for each row of the matrix (a token), four columns to an RGBA texel of floats,
the last one filled up with zeros. Nothing writes an image but the operation ``to_image``, from the
buffer in which the activations lie: a kernel that reads one asks for that conversion
(:meth:`~.spec.KernelSpec.conversions`). The kernel's side is ``tokens.clh``.
"""

from __future__ import annotations

import numpy as np

from .types import Argument, Array, Memory, Workload

#: Where a kernel finds the activations, by the value of its parameter ``XM``.
FORMS: tuple[Memory, ...] = ("buffer", "image1d", "image2d")
#: The value for an image of their own.
CONVERTED = FORMS.index("image2d")


def image_shape(rows: int, cols: int) -> tuple[int, int, int]:
    """Shape of the image of a matrix of floats."""
    return rows, -(-cols // 4), 4


def as_image(matrix: Array) -> Array:
    """The content of a matrix's image."""
    image = np.zeros(image_shape(*matrix.shape), matrix.dtype)
    image.reshape(len(matrix), -1)[:, : matrix.shape[1]] = matrix
    return image


def matrix_argument(name: str, rows: int, cols: int, form: int) -> Argument:
    """The argument of a kernel whose ``XM`` is ``form``."""
    memory = FORMS[form]
    shape = image_shape(rows, cols) if form == CONVERTED else (rows, cols)
    return Argument(name, "input", "float32", shape, memory)


def conversion(rows: int, cols: int) -> Workload:
    """What makes the image of a matrix."""
    return Workload.of("to_image", k=cols, m=rows)
