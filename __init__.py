"""clkiln: tunes the OpenCL kernels of a language model once per device, and runs them warm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import TuneSummary as TuneSummary
    from .api import tune as tune
    from .errors import ClkilnError as ClkilnError
    from .inference.engine import Completion as Completion
    from .inference.engine import Engine as Engine

_LAZY = {
    "ClkilnError": ("errors", "ClkilnError"),
    "Engine": ("inference.engine", "Engine"),
    "Completion": ("inference.engine", "Completion"),
    "TuneSummary": ("api", "TuneSummary"),
    "tune": ("api", "tune"),
}
__all__ = ["ClkilnError", "Completion", "Engine", "TuneSummary", "__version__", "tune"]


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562): ``import clkiln`` itself stays cheap."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _LAZY[name]
    return getattr(import_module(f"clkiln.{module}"), attribute)
