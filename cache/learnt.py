"""What moves between cache files: rows without their places in a file, and how two sets merge.

Every rule here is a maximum or a union: the same sets in any order, or twice, give the same result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from . import codec
from .rows import BestRow, DriverRow, TrialRow

R = TypeVar("R")

#: What ``codec.now`` writes.
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
#: Name of a fact and its values, the latest last -> the value to keep. May raise.
Combine = Callable[[str, list[Any]], Any]


@dataclass(frozen=True)
class FactRow:
    """A small value of a driver."""

    name: str
    driver: str
    value: Any
    updated: str


@dataclass(frozen=True)
class ProgramRow:
    """A compiled program with its bytes, and the digest over key and payload."""

    key: str
    label: str
    driver: str
    created: str
    sha256: str
    payload: bytes


@dataclass(frozen=True)
class Learnt:
    """Rows in canonical order: no two for one key, trials without ids and runs."""

    drivers: tuple[DriverRow, ...] = ()
    best: tuple[BestRow, ...] = ()
    trials: tuple[TrialRow, ...] = ()
    facts: tuple[FactRow, ...] = ()
    programs: tuple[ProgramRow, ...] = ()

    def only(self, wanted: Callable[[str], bool]) -> Learnt:
        """The rows of those drivers that ``wanted`` says yes to."""
        kept = {
            f.name: tuple(row for row in getattr(self, f.name) if wanted(row.driver))
            for f in fields(self)
        }
        return Learnt(**kept)

    def counts(self) -> dict[str, int]:
        return {f.name: len(getattr(self, f.name)) for f in fields(self)}


def last_value(name: str, values: list[Any]) -> Any:
    """The plainest :data:`Combine`: the latest counts."""
    return values[-1]


def merge(parts: Iterable[Learnt], combine: Combine = last_value) -> Learnt:
    """One set of several. What ``combine`` raises goes through.

    Of a driver's descriptions the one seen first counts, of a workload's choices the better one
    (:func:`best_rank`), of a program the latest. Trials are united.
    """
    parts = tuple(parts)
    trials = {_content(row): row for part in parts for row in part.trials}
    return Learnt(
        drivers=_largest((row for p in parts for row in p.drivers), lambda r: r.driver, _earlier),
        best=_largest((row for p in parts for row in p.best), best_key, best_rank),
        trials=tuple(trials[key] for key in sorted(trials)),
        facts=_facts([row for part in parts for row in part.facts], combine),
        programs=_largest(
            (row for p in parts for row in p.programs),
            lambda r: r.key,
            lambda r: (r.created, r.sha256),
        ),
    )


def best_key(row: BestRow) -> tuple[str, str, str]:
    return row.workload, row.driver, row.digest


def best_rank(row: BestRow) -> tuple[Any, ...]:
    """Searched to the end before cut short, then the latest; the rest only decides ties."""
    return row.complete, row.updated, -row.time, row.config, codec.to_json(codec.encode(row))


def trial_order(row: TrialRow) -> tuple[str, str]:
    """Trials of several files, by time; by what they say within a second."""
    return _content(row)


def _content(row: TrialRow) -> tuple[str, str]:
    return row.created, codec.to_json(codec.encode(replace(row, run=None)))


def _earlier(row: DriverRow) -> tuple[Any, ...]:
    # The largest is wanted, and of stamps the smallest: each character is turned around.
    return tuple(-ord(c) for c in row.first_seen), codec.to_json(row.info)


def _largest(
    rows: Iterable[R], key: Callable[[R], Hashable], rank: Callable[[R], tuple[Any, ...]]
) -> tuple[R, ...]:
    found: dict[Any, R] = {}
    for row in rows:
        name = key(row)
        if name not in found or rank(row) > rank(found[name]):
            found[name] = row
    return tuple(found[name] for name in sorted(found))


def _facts(rows: list[FactRow], combine: Combine) -> tuple[FactRow, ...]:
    by_name: dict[tuple[str, str], dict[tuple[str, str], FactRow]] = {}
    for row in rows:
        ranked = by_name.setdefault((row.driver, row.name), {})
        ranked[row.updated, codec.to_json(row.value)] = row
    found = []
    for (driver, name), ranked in sorted(by_name.items()):
        *_, (latest, _) = order = sorted(ranked)
        value = combine(name, [ranked[rank].value for rank in order])
        found.append(FactRow(name, driver, value, latest))
    return tuple(found)
