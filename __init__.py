"""clkiln: tunes the OpenCL kernels of a language model once per device, and runs them warm.

:class:`Engine` answers prompts and conversations with what was tuned. Every error that clkiln
raises on purpose is a :class:`ClkilnError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import TuneSummary as TuneSummary
    from .api import tune as tune
    from .errors import BuildError as BuildError
    from .errors import CacheError as CacheError
    from .errors import CacheMissError as CacheMissError
    from .errors import ClkilnError as ClkilnError
    from .errors import ContextLengthError as ContextLengthError
    from .errors import DeviceError as DeviceError
    from .errors import GenerationError as GenerationError
    from .errors import LaunchError as LaunchError
    from .errors import ModelError as ModelError
    from .errors import OpenCLError as OpenCLError
    from .errors import OutOfDeviceMemory as OutOfDeviceMemory
    from .errors import TuningError as TuningError
    from .errors import UnsupportedModel as UnsupportedModel
    from .errors import UnsupportedOperation as UnsupportedOperation
    from .errors import UsageError as UsageError
    from .inference.chat import Message as Message
    from .inference.completion import Completion as Completion
    from .inference.completion import Stream as Stream
    from .inference.completion import TokenLogprob as TokenLogprob
    from .inference.completion import TopLogprob as TopLogprob
    from .inference.engine import Engine as Engine
    from .inference.options import AnswerOptions as AnswerOptions
    from .inference.options import PromptOptions as PromptOptions

#: Module -> public names in it.
_PUBLIC = {
    "api": "TuneSummary tune",
    "errors": (
        "BuildError CacheError CacheMissError ClkilnError ContextLengthError DeviceError "
        "GenerationError LaunchError ModelError OpenCLError OutOfDeviceMemory TuningError "
        "UnsupportedModel UnsupportedOperation UsageError"
    ),
    "inference.chat": "Message",
    "inference.completion": "Completion Stream TokenLogprob TopLogprob",
    "inference.engine": "Engine",
    "inference.options": "AnswerOptions PromptOptions",
}
_LAZY = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = [*_LAZY, "__version__"]


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562): ``import clkiln`` itself stays cheap."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"clkiln.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
