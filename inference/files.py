"""Reading model files: memory maps, and small JSON files that nobody vouches for."""

from __future__ import annotations

import json
import mmap
import os
import stat
from pathlib import Path
from typing import Any

from ..errors import ModelError

#: What the ``transformers`` library calls the weights of a directory, and the list of their shards.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Bytes up to which small files are read, many times what any needs.
MAX_JSON = 8 << 20


def map_file(path: Path, *, wanted: str) -> mmap.mmap:
    """Map ``path`` for reading. Raises ``ModelError`` for what is no file with something in it;
    ``wanted`` says what the user should pass instead."""
    try:
        status = os.stat(path)
        # Asked before opening: opening a pipe would wait for a writer.
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path} is not a file; {wanted}")
        if status.st_size == 0:
            raise ModelError(f"{path} is empty; download the model again")
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; {wanted}") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_bytes(path: Path, limit: int) -> bytes | None:
    """All of a file that has at most ``limit`` bytes, or None where there is none.

    Raises ``ModelError`` for a longer file, or one that can't be read.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path} is not a file; download the model again")
        if status.st_size > limit:
            raise ModelError(f"{path} has {status.st_size} bytes, more than such a file ever needs")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def parse_object(data: bytes, about: str) -> dict[str, Any]:
    """The JSON object in ``data``; a ``ModelError`` that begins with ``about`` for anything else,
    and for a key that is there twice, of which readers would take one or the other."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique)
    except _TwiceError as error:
        raise ModelError(f"{about} is damaged: key {error} is there twice") from None
    except (ValueError, RecursionError) as error:
        # A list in a list in a list ... ends in a RecursionError.
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ModelError(f"{about} is damaged: {reason}; download the model again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{about} is damaged: no JSON object; download the model again")
    return value


class _TwiceError(Exception):
    """An object has a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _TwiceError(repr(name))
        found[name] = value
    return found


def _unreadable(path: Path, error: OSError | ValueError) -> ModelError:
    return ModelError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}")
