"""Activations by name: the macro of ``activation.clh``, and what it computes, in float64."""

from __future__ import annotations

import math
from types import MappingProxyType

import numpy as np

from .types import Array

#: By the tag ``act`` of a workload.
ACTIVATIONS = MappingProxyType(
    {
        "none": "IDENTITY",
        "relu": "RELU",
        "silu": "SILU",
        "gelu": "GELU_ERF",
        "gelu_tanh": "GELU_TANH",
    }
)

_erf = np.frompyfunc(math.erf, 1, 1)


def activate(x: Array, name: str) -> Array:
    """Element by element; ``name`` is one of :data:`ACTIVATIONS`, else it raises ``ValueError``."""
    x = np.asarray(x, np.float64)
    match name:
        case "none":
            return x
        case "relu":
            return np.maximum(x, 0)
        case "silu":
            return np.asarray(x / (1 + np.exp(-x)))
        case "gelu":
            return np.asarray(0.5 * x * (1 + np.asarray(_erf(x / math.sqrt(2)), np.float64)))
        case "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return np.asarray(0.5 * x * (1 + np.tanh(inner)))
    raise ValueError(f"no activation {name!r}: {', '.join(ACTIVATIONS)}")
