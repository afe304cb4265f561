"""pyopencl, imported once every installed driver is visible: ``from .opencl import cl``."""

from __future__ import annotations

from .icd import prepare_drivers

prepare_drivers()

import pyopencl as cl  # noqa: E402  (the loader reads its settings only once)

__all__ = ["cl", "extension_module"]


def extension_module() -> str:
    """The file of pyopencl's compiled half, which is linked to the OpenCL loader."""
    from pyopencl import _cl

    return str(_cl.__file__)
