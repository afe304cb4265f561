"""Every exception that clkiln raises on purpose, in one hierarchy.

The message of each says what happened, to which thing, and what to do about it; the command line
prints it as one line. It lies outside the rooms because all of them raise from it.
"""

from __future__ import annotations

from collections.abc import Sequence


class ClkilnError(Exception):
    """Base of all errors of clkiln. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(ClkilnError):
    """The caller asked for something that makes no sense: wrong flag, unknown level, bad value."""

    exit_code = 2


class DeviceError(ClkilnError):
    """No OpenCL device, an unknown or ambiguous selector, or a device that stopped answering."""


class OpenCLError(ClkilnError):
    """The driver refused something; the message names operation, variant and parameters."""


class BuildError(OpenCLError):
    """A program did not compile or a binary was refused; the compiler's log is in the message."""


class LaunchError(OpenCLError):
    """A kernel could not be launched, or failed while it ran."""


class OutOfDeviceMemory(ClkilnError):
    """Something did not fit into the device's memory budget; the message names what."""


class UnsupportedOperation(ClkilnError):
    """No variant of an operation can run a workload on this device.

    The message is one line; ``headline`` and ``details`` are its parts, an operation each, for who
    has more lines.
    """

    def __init__(self, headline: str, details: Sequence[str] = ()) -> None:
        super().__init__(": ".join(filter(None, (headline, "; ".join(details)))))
        self.headline, self.details = headline, tuple(details)


class ModelError(ClkilnError):
    """A model file is missing, truncated, foreign or inconsistent."""


class UnsupportedModel(ModelError):
    """A model file is sound, but uses an architecture, tensor type or tokenizer clkiln lacks."""


class ContextLengthError(ClkilnError):
    """A prompt does not fit into the context."""


class GenerationError(ClkilnError):
    """The logits of a step were not finite or all equal: the device computed nonsense."""


class CacheError(ClkilnError):
    """The cache file cannot be used: foreign, newer, damaged, locked or not writable."""


class CacheMissError(ClkilnError):
    """``require_cache`` was set and something would have been compiled or would fall back."""


class TuningError(ClkilnError):
    """A tuning run could not go on (workers that keep dying, a device that is lost)."""
