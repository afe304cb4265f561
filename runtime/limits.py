"""Limit profiles: figures and features with which a device pretends to be a smaller one.

Plain data, and reading it: what a profile does to a device is in :mod:`.pretend`. Under a limit the
device's own smaller figure stays: a profile says "at most".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..units import readable
from .features import FEATURES

Figure = int | tuple[int, ...]

#: Figures of a device that can be limited, and what they are called; sizes in bytes last.
FIGURES = {
    "max_work_group_size": "work-group",
    "max_work_item_sizes": "local sizes",
    "image2d_max_width": "image width",
    "image2d_max_height": "image height",
    "image_max_buffer_size": "image buffer",
    "local_memory": "local memory",
    "max_alloc": "largest allocation",
}
BYTES = ("local_memory", "max_alloc")
#: What else a profile may say: features that the device shall lack.
WITHOUT = "without"

#: The profiles that have names. A file holds one such object.
PROFILES: dict[str, dict[str, Any]] = {
    "local-32k": {"local_memory": 32 << 10},
    "local-48k": {"local_memory": 48 << 10},
    "group-64": {"max_work_group_size": 64},
    "group-128": {"max_work_group_size": 128},
    "alloc-128m": {"max_alloc": 128 << 20},
    "images-4096": {"image2d_max_width": 4096, "image2d_max_height": 4096},
    "no-images": {"without": ["images"]},
    "no-fp16": {"without": ["fp16"]},
    "cl-1.1": {"without": ["cl12"]},
    "no-asm": {"without": ["asm"]},
    # A phone of some years ago: the least that OpenCL 1.1 asks of one, and no extension.
    "small": {
        "local_memory": 32 << 10,
        "max_work_group_size": 64,
        "max_work_item_sizes": [64, 64, 64],
        "max_alloc": 128 << 20,
        "image2d_max_width": 4096,
        "image2d_max_height": 4096,
        "image_max_buffer_size": 65536,
        "without": ["fp16", "subgroups", "integer_dot_product", "cl12", "asm"],
    },
}

#: What divides profiles in ``CLKILN_LIMITS``.
_COMMA = ","
_LARGEST_FILE = 1 << 16


@dataclass(frozen=True)
class Limit:
    """One figure of :data:`FIGURES` at ``most``, or a feature that is missing (``most`` None).

    ``source`` is the profile that says so. ``own`` is the device's own figure, once applied.
    """

    name: str
    most: Figure | None
    source: str
    own: Figure | None = None

    def __str__(self) -> str:
        if self.most is None:
            return f"no {FEATURES[self.name].meaning}"
        of = "" if self.own is None else f" of {self._size(self.own)}"
        return f"{FIGURES[self.name]} {self._size(self.most)}{of}"

    def _size(self, figure: Figure) -> str:
        if isinstance(figure, tuple):
            return " x ".join(map(str, figure))
        return readable(figure) if self.name in BYTES else str(figure)


@dataclass(frozen=True)
class Limits:
    """Limits by name, at most one of each; none of them is no limit. Text form: :meth:`parse`."""

    entries: tuple[Limit, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.entries)

    def __str__(self) -> str:
        """``local_memory=32768,without=asm``: the same for the same limits, whoever set them."""
        words = [
            f"{e.name}={'x'.join(map(str, e.most)) if isinstance(e.most, tuple) else e.most}"
            for e in self.entries
            if e.most is not None
        ]
        missing = "+".join(self.without)
        return _COMMA.join([*words, *([f"{WITHOUT}={missing}"] if missing else [])])

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Inverse of ``str``, by which they are then known. Raises
        :class:`~clkiln.errors.UsageError` for anything else."""
        data: dict[str, Any] = {}
        for word in filter(None, text.split(_COMMA)):
            name, _, value = word.partition("=")
            numbers = [int(v) if v.isdecimal() else v for v in value.split("x")]
            data[name] = numbers[0] if len(numbers) == 1 else numbers
            if name == WITHOUT:
                data[name] = value.split("+")
        found = cls.of(data, text)
        if str(found) != text:
            raise UsageError(f"{text!r} are no limits")
        return found

    @classmethod
    def of(cls, data: Any, source: str) -> Limits:
        """From an object as in :data:`PROFILES`. Raises :class:`~clkiln.errors.UsageError`, naming
        ``source`` and what in it is wrong."""
        if not isinstance(data, Mapping):
            raise UsageError(f"limits {source}: an object with {_fields()} is expected")
        entries = []
        for name, value in data.items():
            if name == WITHOUT:
                entries += [Limit(feature, None, source) for feature in _features(value, source)]
            elif name in FIGURES:
                entries.append(Limit(name, _figure(name, value, source), source))
            else:
                close = get_close_matches(str(name), (*FIGURES, WITHOUT), n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {_fields()}"
                raise UsageError(f"limits {source}: there is no {name!r}; {hint}")
        return cls(()).also(cls(tuple(entries)))

    def also(self, other: Limits) -> Limits:
        """Both together: of a figure the smaller one counts, at a tie the first."""
        found = {entry.name: entry for entry in self.entries}
        for entry in other.entries:
            old = found.setdefault(entry.name, entry)
            if old.most is not None and entry.most is not None:
                both = smaller(old.most, entry.most)
                if both != old.most:
                    found[entry.name] = replace(entry, most=both, own=old.own)
        return Limits(tuple(found[name] for name in sorted(found)))

    @property
    def without(self) -> tuple[str, ...]:
        """Features that are missing."""
        return tuple(entry.name for entry in self.entries if entry.most is None)

    @property
    def sources(self) -> tuple[str, ...]:
        """The profiles that they come from."""
        return tuple(dict.fromkeys(entry.source for entry in self.entries))

    def because(self, *names: str) -> str:
        """``(limits: local-32k)`` behind a blank, if one of ``names`` is limited; else nothing."""
        found = dict.fromkeys(entry.source for entry in self.entries if entry.name in names)
        return f" (limits: {', '.join(found)})" if found else ""

    def as_list(self) -> list[dict[str, Any]]:
        """Plain data for JSON."""
        return [
            {"name": e.name, "most": _plain(e.most), "own": _plain(e.own), "from": e.source}
            for e in self.entries
        ]


NO_LIMITS = Limits()


def smaller(one: Figure, other: Figure) -> Figure:
    """The smaller of two figures of one kind; of several numbers, each of them."""
    if isinstance(one, int):
        return min(one, other) if isinstance(other, int) else one
    return tuple(map(min, one, other)) if isinstance(other, tuple) else one


def read_limits(values: Iterable[str | os.PathLike[str]]) -> Limits:
    """The limits of profiles and files together.

    Raises :class:`~clkiln.errors.UsageError` for a name that there is not, a file that can't be
    read, and a field in it that is unknown or has a value of another kind.
    """
    found = Limits()
    for value in values:
        name = os.fspath(value)
        found = found.also(Limits.of(PROFILES.get(name) or _content(name), name))
    return found


def limits_from_environment() -> tuple[str, ...]:
    """What ``CLKILN_LIMITS`` names, divided by commas; nothing where it is unset or empty."""
    words = os.environ.get("CLKILN_LIMITS", "").split(_COMMA)
    return tuple(word.strip() for word in words if word.strip())


def _content(name: str) -> Any:
    path = Path(name)
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE)
    except (OSError, ValueError) as error:
        if path.suffix == ".json" or os.sep in name:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"limits {name}: cannot be read: {reason}") from error
        close = get_close_matches(name.lower(), PROFILES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"a JSON file, or {', '.join(PROFILES)}"
        raise UsageError(f"no limits {name!r}; {hint}") from error
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"limits {name}: it is not JSON ({error})") from error


def _figure(name: str, value: Any, source: str) -> Figure:
    if name != "max_work_item_sizes":
        if type(value) is int and value > 0:
            return value
        raise UsageError(f"limits {source}: {name} is {value!r}, not a number above 0")
    if isinstance(value, list) and len(value) == 3 and all(type(v) is int and v > 0 for v in value):
        return tuple(value)
    raise UsageError(f"limits {source}: {name} is {value!r}, not three numbers above 0")


def _features(value: Any, source: str) -> list[str]:
    known = ", ".join(FEATURES)
    if not isinstance(value, list) or not all(isinstance(feature, str) for feature in value):
        raise UsageError(f"limits {source}: {WITHOUT} is {value!r}, not a list of {known}")
    for feature in value:
        if feature not in FEATURES:
            raise UsageError(f"limits {source}: {WITHOUT} {feature!r}; there is {known}")
    return value


def _fields() -> str:
    return ", ".join((*FIGURES, WITHOUT))


def _plain(figure: Figure | None) -> Any:
    return list(figure) if isinstance(figure, tuple) else figure
