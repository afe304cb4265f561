"""Rows to and from the values that SQLite holds.

What comes from a file is checked field by field: STRICT tables check what is written, not what a
failing disk makes of it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from .rows import BestRow, BinaryRow, DriverRow, RunRow, TrialRow

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")

TABLE_OF: dict[type, str] = {
    DriverRow: "drivers",
    TrialRow: "trials",
    BestRow: "best",
    RunRow: "runs",
    BinaryRow: "binaries",
}


def now(*, days_ago: float = 0) -> str:
    """UTC, ISO 8601, seconds: ``2026-11-20T18:45:00Z``. Such texts sort by time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - days_ago * 86400))


def columns(kind: type[DataclassInstance]) -> str:
    """The columns of ``kind`` for a SELECT, in the order of its fields."""
    return ", ".join(types(kind))


def encode(row: DataclassInstance, **stamps: Any) -> dict[str, Any]:
    """Column values of ``row``, with ``stamps`` over its fields; ``id`` is left to SQLite.

    SQLite has no NaN: it becomes NULL, so None comes back. Lone surrogates (file names and compiler
    logs that are no UTF-8) become escapes. Raises ``TypeError`` for what JSON cannot hold.
    """
    values = {f.name: getattr(row, f.name) for f in fields(row)} | stamps
    return {name: _plain(value) for name, value in values.items() if name != "id"}


def decode(kind: type[R], values: Sequence[Any]) -> R:
    """Inverse of :func:`encode` over :func:`columns`. Raises ``ValueError`` for a wrong type."""
    pairs = zip(types(kind).items(), values, strict=True)
    return kind(**{name: _typed(name, accepted, value) for (name, accepted), value in pairs})


def to_json(value: Any) -> str:
    """Raises ``TypeError`` or ``ValueError`` for what JSON cannot hold."""
    return json.dumps(value, separators=(",", ":"))


def from_json(text: Any) -> Any:
    """Raises ``ValueError`` for anything that is not a JSON text."""
    if not isinstance(text, str):
        raise ValueError("not a JSON text")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None


def seal(key: str, payload: bytes) -> str:
    """SHA-256 over key and payload, hexadecimal. The key's length keeps the two apart."""
    name = key.encode()
    digest = hashlib.sha256(len(name).to_bytes(8, "little"))
    digest.update(name)
    digest.update(payload)
    return digest.hexdigest()


@cache
def types(kind: type[DataclassInstance]) -> Mapping[str, tuple[type, ...]]:
    """The types that each field accepts, taken from its annotation."""
    hints = get_type_hints(kind)
    return {f.name: _accepted(hints[f.name]) for f in fields(kind)}


def _accepted(annotation: Any) -> tuple[type, ...]:
    if isinstance(annotation, UnionType):
        return tuple(get_args(annotation))
    return (object if annotation is Any else get_origin(annotation) or annotation,)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return to_json(value)
    return int(value) if isinstance(value, bool) else value


def _typed(name: str, accepted: tuple[type, ...], value: Any) -> Any:
    if accepted == (dict,):
        value = from_json(value)
    elif accepted == (bool,) and value in (0, 1):
        value = bool(value)
    if not isinstance(value, accepted):
        raise ValueError(f"column {name} holds a {type(value).__name__}")
    return value
