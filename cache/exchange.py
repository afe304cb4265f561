"""An export: a text file of what was learnt, a row to a line, safe to read wherever it comes from.

Lines of JSON: a header, the rows, and a last line with their number and a SHA-256 over all bytes
before it. Nothing in it is executed, sizes are bounded before they are believed, and every row is
checked field by field. The same rows give the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from ..errors import CacheError
from . import codec
from .learnt import STAMP, FactRow, Learnt, ProgramRow, merge
from .reader import sealed
from .rows import STATUSES, BestRow, DriverRow, TrialRow

#: Of the file format; a reader refuses what is newer.
FORMAT = 1
#: Bounds on what is read: rows, bytes of a line, characters of a text, values within values.
MOST_ROWS, MOST_LINE, MOST_TEXT, MOST_DEPTH = 1_000_000, 128 << 20, 1 << 20, 50

_HEADER = "clkiln export"
_KINDS: dict[str, tuple[str, type]] = {
    "driver": ("drivers", DriverRow),
    "best": ("best", BestRow),
    "trial": ("trials", TrialRow),
    "fact": ("facts", FactRow),
    "program": ("programs", ProgramRow),
}
#: Places in the file that a row came from.
_LEFT_OUT = ("id", "run")
_STAMPS = ("first_seen", "updated", "created")


def write_export(path: Path, learnt: Learnt) -> Learnt:
    """Write ``learnt`` to ``path``, whole or not at all. Raises :class:`CacheError`.

    A file that is there is replaced if it is an export, and is an error if it is anything else.
    Returns what was written: rows that :func:`read_export` would refuse, as a damaged cache file
    may hold, are left out, and with a driver's description all rows of that driver.
    """
    learnt = _acceptable(learnt)
    try:
        if path.exists() and not _is_export(path):
            raise CacheError(f"{path} is there and no export: name another file")
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                _write(file, learnt)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise CacheError(f"{path} could not be written: {error.strerror or error}") from error
    return learnt


def read_export(path: Path) -> Learnt:
    """The rows of an export. Raises :class:`CacheError`, which names the file and the line."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except OSError as error:
        raise CacheError(f"{path} could not be read: {error.strerror or error}") from error
    except CacheError as error:
        raise CacheError(f"{path} {error}") from error


# -- writing ---------------------------------------------------------------------------------------


def _write(file: IO[bytes], learnt: Learnt) -> None:
    digest, count = hashlib.sha256(), 0
    for data in _lines(learnt):
        digest.update(data)
        file.write(data)
        count += 1
    file.write(_dumped({"rows": count - 1, "sha256": digest.hexdigest()}))


def _lines(learnt: Learnt) -> Iterator[bytes]:
    yield _dumped({_HEADER: FORMAT})
    for kind, (table, _) in _KINDS.items():
        for row in getattr(learnt, table):
            yield _line(kind, row)


def _line(kind: str, row: Any) -> bytes:
    values = {f.name: getattr(row, f.name) for f in fields(row) if f.name not in _LEFT_OUT}
    if isinstance(row, ProgramRow):
        values["payload"] = base64.b64encode(row.payload).decode()
    return _dumped({kind: values})


def _dumped(value: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(value, allow_nan=False, separators=(", ", ": "))
    except RecursionError:
        raise ValueError("nested too deep") from None
    return f"{text}\n".encode("ascii")


def _acceptable(learnt: Learnt) -> Learnt:
    """What of ``learnt`` can be read again."""
    rows = {
        table: tuple(row for row in getattr(learnt, table) if _is_acceptable(kind, row))
        for kind, (table, _) in _KINDS.items()
    }
    known = {row.driver for row in rows["drivers"]}
    return Learnt(**rows).only(lambda driver: driver in known)


def _is_acceptable(kind: str, row: Any) -> bool:
    try:
        data = _line(kind, row)
        _row(kind, _object(data)[kind])
    except ValueError:
        return False
    return len(data) <= MOST_LINE


def _is_export(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_HEADER) + 4).startswith(f'{{"{_HEADER}'.encode())


# -- reading ---------------------------------------------------------------------------------------


def _read(file: IO[bytes]) -> Learnt:
    first = file.readline(1000)
    _check_header(first)
    digest, found = hashlib.sha256(first), dict[str, list[Any]]()
    for count in range(MOST_ROWS + 1):
        data = file.readline(MOST_LINE + 1)
        if len(data) > MOST_LINE:
            raise CacheError(f"has a line {count + 2} of more than {MOST_LINE >> 20} MiB")
        if not data.endswith(b"\n"):
            raise CacheError(f"is cut short after line {count + 1}: copy it once more")
        try:
            line = _object(data)
            if "rows" in line:
                if line != {"rows": count, "sha256": digest.hexdigest()} or file.read(1):
                    raise CacheError("is damaged, or was edited: its digest does not fit")
                break
            ((kind, values),) = line.items()
            found.setdefault(_KINDS[kind][0], []).append(_row(kind, values))
        except (ValueError, KeyError) as error:
            raise CacheError(f"is damaged in line {count + 2}: {error}") from error
        digest.update(data)
    else:
        raise CacheError(f"has more than {MOST_ROWS:,} rows")
    whole = Learnt(**{table: tuple(rows) for table, rows in found.items()})
    known = {row.driver for row in whole.drivers}
    if unknown := {d for d in _drivers(whole) if d not in known}:
        raise CacheError(f"is damaged: it does not say which driver {min(unknown)} is")
    return merge([whole])


def _drivers(learnt: Learnt) -> Iterator[str]:
    for rows in (learnt.best, learnt.trials, learnt.facts, learnt.programs):
        yield from (row.driver for row in rows)


def _check_header(line: bytes) -> None:
    if line.startswith(b"SQLite format 3"):
        raise CacheError("is a cache file and no export: clkiln cache export FILE --cache it")
    try:
        version = _object(line)[_HEADER]
    except (ValueError, KeyError):
        raise CacheError("is no export of clkiln: clkiln cache export makes one") from None
    if not isinstance(version, int) or version > FORMAT:
        raise CacheError(f"has format {version}, this clkiln knows up to {FORMAT}: update clkiln")


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("ascii"), parse_constant=_number, parse_float=_number)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _number(text: str) -> float:
    """JSON has no infinity, but 1e999 is one to Python."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no number")
    return value


def _row(kind: str, values: Any) -> Any:
    """A row of its kind. Raises ``ValueError`` for whatever a store would not have written."""
    of = _KINDS[kind][1]
    wanted = {f.name: f for f in fields(of) if f.name not in _LEFT_OUT}
    if not isinstance(values, dict) or values.keys() != wanted.keys():
        raise ValueError(f"a {kind} has the fields {', '.join(wanted)}")
    _check_within(values)
    if kind == "program":
        values = values | {"payload": _decoded(values["payload"])}
    if kind == "fact":
        codec.to_json(values["value"])
    for name, accepted in codec.types(of).items():
        if name in wanted and name != "value":
            values[name] = _value(name, accepted, values[name])
    row = of(**values)
    _check_row(row)
    return row


def _value(name: str, accepted: tuple[type, ...], value: Any) -> Any:
    if float in accepted and type(value) is int and abs(value) < 2**63:
        value = float(value)
    if type(value) not in accepted:
        raise ValueError(f"{name} is a {type(value).__name__}")
    if name in _STAMPS and not STAMP.fullmatch(value):
        raise ValueError(f"{name} is no time: {value[:40]!r}")
    if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}")
    if type(value) is int and not 0 <= value < 2**63:
        raise ValueError(f"{name} is out of range")
    return value


def _check_row(row: Any) -> None:
    if isinstance(row, TrialRow) and row.status not in STATUSES:
        raise ValueError(f"no trial ends with {row.status[:40]!r}")
    if isinstance(row, BestRow) and row.time <= 0:
        raise ValueError("time is 0")
    if isinstance(row, ProgramRow) and not sealed(row.key, row.sha256, row.payload):
        raise ValueError(f"the digest of {row.label[:40]!r} does not fit")
    if not row.driver:
        raise ValueError("it is of no driver")


def _check_within(value: Any, depth: int = 0) -> None:
    """A bound on depth; bounds and UTF-8 for all texts within ``value`` but a program's bytes."""
    if depth > MOST_DEPTH:
        raise ValueError("nested too deep")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_within(name)
            if name != "payload":
                _check_within(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_within(inner, depth + 1)
    elif isinstance(value, str):
        if len(value) > MOST_TEXT:
            raise ValueError("a text is too long")
        value.encode()  # lone surrogates are a ValueError


def _decoded(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError("payload is no text")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"payload: {error}") from None
