"""pyopencl, imported once every installed driver is visible: ``from .opencl import cl``."""

from __future__ import annotations

from .icd import prepare_drivers

prepare_drivers()

import pyopencl as cl  # noqa: E402  (the loader reads its settings only once)

__all__ = ["cl"]
