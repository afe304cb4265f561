"""The operations. ``SPECS`` maps an operation's name to its :class:`~.spec.KernelSpec`."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .spec import KernelSpec

#: Every folder below this one that holds a ``spec.py``, and the class in it.
OPERATIONS = MappingProxyType(
    {
        "add": "AddSpec",
        "argmax": "ArgmaxSpec",
        "attention_decode": "AttentionDecodeSpec",
        "attention_prefill": "AttentionPrefillSpec",
        "conv2d": "Conv2dSpec",
        "embedding": "EmbeddingSpec",
        "gelu": "GeluSpec",
        "gemm": "GemmSpec",
        "gemv": "GemvSpec",
        "layernorm": "LayernormSpec",
        "rmsnorm": "RmsnormSpec",
        "roof_fma": "RoofFmaSpec",
        "roof_read": "RoofReadSpec",
        "rope": "RopeSpec",
        "softmax": "SoftmaxSpec",
        "to_image": "ToImageSpec",
        "transpose": "TransposeSpec",
    }
)


def _load() -> dict[str, KernelSpec]:
    """One spec object for each operation."""
    return {
        op: getattr(import_module(f".{op}.spec", __name__), name)()
        for op, name in OPERATIONS.items()
    }


SPECS: dict[str, KernelSpec] = _load()
