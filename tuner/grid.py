"""A finite space of configurations as arrays: codes, distances between values, neighbours."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What stands for a parameter that a configuration does not have (another variant's).
ABSENT = "\0absent"

Config = Mapping[str, Any]
Codes = NDArray[np.int16]
Indices = NDArray[np.int64]
Floats = NDArray[np.float64]


class Grid:
    """``configs`` as integer codes [configurations, parameters that vary].

    ``tables[p]`` holds the distances between the values of parameter ``p``, one symmetric matrix
    [values, values] in [0, 1] for each way to look at them. ``odd`` [configurations] is how many of
    a configuration's numbers are no power of two where such could be had, ``outer`` how far out
    its numbers lie in their ranges, squared, on average.
    """

    def __init__(self, configs: Sequence[Config]) -> None:
        names = list(dict.fromkeys(name for config in configs for name in config))
        columns = {name: [config.get(name, ABSENT) for config in configs] for name in names}
        self.names: list[str] = []
        self.values: list[list[Any]] = []
        codes: list[Codes] = []
        for name in names:
            values = _ordered(columns[name])
            if len(values) > 1:
                index = {_key(value): i for i, value in enumerate(values)}
                self.names.append(name)
                self.values.append(values)
                codes.append(np.array([index[_key(v)] for v in columns[name]], np.int16))
        self.size = len(configs)
        self.codes: Codes = np.stack(codes, 1) if codes else np.zeros((self.size, 0), np.int16)
        self.tables = [_distances(values) for values in self.values]
        self.odd = self._sum(_odd)
        self.outer = self._sum(_outer) / max(1, sum(map(_ordinal, self.values)))

    def take(self, indices: Indices) -> Grid:
        """The same space with these configurations alone."""
        part = copy.copy(self)
        part.size, part.codes = len(indices), self.codes[indices]
        part.odd, part.outer = self.odd[indices], self.outer[indices]
        return part

    def _sum(self, feature: Any) -> Floats:
        total = np.zeros(self.size)
        for p, values in enumerate(self.values):
            total += np.array(feature(values))[self.codes[:, p]]
        return total

    def apart(self, index: int) -> NDArray[np.int64]:
        """In how many parameters each configuration differs from configuration ``index``."""
        return np.asarray(np.count_nonzero(self.codes != self.codes[index], axis=1))


def _key(value: Any) -> tuple[bool, Any]:
    """True is not 1 here, and what cannot be hashed goes by its text."""
    return value.__class__ is bool, value if value.__hash__ else repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(values: Sequence[Any]) -> list[float]:
    return [value for value in values if _is_number(value)]


def _ordered(column: Sequence[Any]) -> list[Any]:
    """The distinct values: numbers by size, then the others as they come."""
    distinct = list({_key(value): value for value in column}.values())
    return [*sorted(_numbers(distinct)), *(v for v in distinct if not _is_number(v))]


def _ordinal(values: Sequence[Any]) -> bool:
    return len(_numbers(values)) > 2


def _distances(values: Sequence[Any]) -> NDArray[np.float64]:
    """[ways, values, values]; whatever is no number is 1 from everything else in every way."""
    n = len(values)
    other = 1.0 - np.eye(n)
    if not _ordinal(values):
        return other[None]
    numbers = np.array(_numbers(values))
    k = len(numbers)
    ways = [np.arange(k) / (k - 1)]
    if numbers[0] > 0:
        ways.append(_scaled(np.log2(numbers)))
    if _integral(numbers):
        ways.append(_scaled(np.array([_twos(int(v)) for v in numbers], float)))
        ways.append(np.array([float(_power(int(v))) for v in numbers]))
    tables = [other]
    for way in ways:
        if np.ptp(way) > 0:
            table = other.copy()
            table[:k, :k] = np.abs(way[:, None] - way)
            tables.append(table)
    return np.stack(tables)


def _scaled(way: Floats) -> Floats:
    low, span = way.min(), np.ptp(way)
    return np.asarray((way - low) / (span or 1.0))


def _integral(numbers: Floats) -> bool:
    return bool(np.all(numbers == np.round(numbers)) and numbers[0] >= 0)


def _twos(value: int) -> int:
    """How often two divides ``value``; 8 at most, as more makes no difference to a device."""
    return min(8, (value & -value).bit_length() - 1) if value else 8


def _power(value: int) -> bool:
    return value & (value - 1) == 0


def _odd(values: Sequence[Any]) -> list[float]:
    """1 for each number that is no power of two, where others of the parameter are one."""
    numbers = np.array(_numbers(values))
    if not _ordinal(values) or not _integral(numbers):
        return [0.0] * len(values)
    powers = [_is_number(v) and _power(int(v)) for v in values]
    return [
        float(_is_number(v) and not p and any(powers)) for v, p in zip(values, powers, strict=True)
    ]


def _outer(values: Sequence[Any]) -> list[float]:
    """Squared distance of each number's place from the middle of its parameter's, in [0, 1]."""
    if not _ordinal(values):
        return [0.0] * len(values)
    k = len(_numbers(values))
    return [(2 * i / (k - 1) - 1) ** 2 if i < k else 0.0 for i in range(len(values))]
