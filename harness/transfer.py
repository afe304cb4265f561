"""What of a cache file moves to another machine, and what is taken from there.

Rows are held against today's kernels; bans and pins of both sides are united, and what contradicts
is refused rather than decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import reduce
from typing import Any

from ..cache.learnt import FactRow, Learnt
from ..cache.paths import cache_file
from ..cache.rows import BestRow, DriverRow, TrialRow
from ..cache.store import Store
from ..errors import CacheError
from ..kernels import SPECS
from ..kernels.rules import SHARING, Ban, Rules, places, tied_problem
from ..kernels.types import Workload
from .keys import read_choice, read_config
from .rules import RULES, TAKEN_BACK, over, own_rules, read_rules, taken_back


def portable(learnt: Learnt) -> Learnt:
    """What makes sense on another machine.

    Facts that say what went well or wrong in a start here stay here: a start there looks itself.
    So does what was taken back of the rules that were shipped with this machine.
    """
    known = {row.driver for row in learnt.drivers}
    return replace(
        learnt.only(lambda driver: driver in known),
        best=tuple(row for row in learnt.best if row.driver in known and not _wrong(row)),
        trials=tuple(row for row in learnt.trials if row.driver in known and not _wrong(row)),
        facts=tuple(
            row for row in map(_untaken, learnt.facts) if row.driver in known and _travels(row)
        ),
    )


def check_rows(learnt: Learnt, what: str) -> None:
    """Raise :class:`CacheError`, which names ``what``, for rows that no clkiln would have kept."""
    rows: list[BestRow | TrialRow] = [*learnt.best, *learnt.trials]
    for row in rows:
        if problem := _wrong(row):
            raise CacheError(f"{what} makes no sense: {row.workload} {row.config} {problem}")
    for fact in learnt.facts:
        if not _travels(fact):
            raise CacheError(f"{what} makes no sense: no such fact as {fact.name[:80]!r}")


def of_device(learnt: Learnt, name: str, platform: str, what: str) -> Learnt:
    """The rows of a device's drivers. Raises :class:`CacheError` if there are none."""
    file = cache_file(name, platform).name
    devices = {row.driver: _device(row) for row in learnt.drivers}
    found = learnt.only(lambda driver: cache_file(*devices[driver]).name == file)
    if devices and not found.drivers:
        others = ", ".join(sorted({name for name, _ in devices.values()}))
        raise CacheError(
            f"{what} holds what was learnt on {others}, and this device is {name}: choose another "
            "with --device, or a cache file with --cache"
        )
    return found


def without_rules(learnt: Learnt) -> Learnt:
    return replace(learnt, facts=tuple(row for row in learnt.facts if row.name != RULES))


def combine(name: str, values: list[Any]) -> Any:
    """For :meth:`~clkiln.cache.store.Store.merge`: rules are united, of other facts the latest
    counts. Raises :class:`CacheError` for rules that contradict each other."""
    if name != RULES:
        return values[-1]
    united = reduce(_unite, map(own_rules, values))
    _check_rules(united)
    return united.as_dict() | _taken(values)


def check_shipped(store: Store, more: Learnt) -> None:
    """Raise :class:`CacheError` if rules of ``more`` and those shipped under ``store`` leave an
    operation nothing."""
    for row in more.facts:
        shipped = store.shipped_fact(RULES, driver=row.driver) if row.name == RULES else None
        if shipped is not None:
            values = [store.own_fact(RULES, driver=row.driver), row.value]
            united = reduce(_unite, map(own_rules, values))
            _check_rules(over(Rules.of(shipped), united, taken_back(_taken(values))))


def tied_problems(store: Store, more: Learnt) -> list[str]:
    """What the rules keep from running under the drivers that ``more`` has rules for."""
    drivers = {row.driver for row in more.facts if row.name == RULES}
    found = (tied_problem(read_rules(store, driver), None) for driver in sorted(drivers))
    return list(dict.fromkeys(filter(None, found)))


# -- rows ------------------------------------------------------------------------------------------


def _device(row: DriverRow) -> tuple[str, str]:
    return str(row.info.get("name", "?")), str(row.info.get("platform", "?"))


def _wrong(row: BestRow | TrialRow) -> str:
    """What is wrong with parameters; of a kernel's other versions only that they parse is known."""
    if not _is_workload(row.workload):
        return "is no workload"
    if read_config(row.config) is None:
        return "is no configuration"
    spec = SPECS.get(row.workload.split(" ")[0])
    today = spec is not None and spec.digest() == row.digest
    if isinstance(row, BestRow) and today and not read_choice(row.workload, row.config):
        return "is none of its kernel's configurations"
    return ""


def _travels(row: FactRow) -> bool:
    for start, sensible in _FACTS.items():
        if row.name.startswith(start):
            return sensible(row)
    return False


def _untaken(row: FactRow) -> FactRow:
    if row.name != RULES or not isinstance(row.value, dict):
        return row
    return replace(row, value={k: v for k, v in row.value.items() if k != TAKEN_BACK})


def _is_rules(row: FactRow) -> bool:
    return row.name == RULES and isinstance(row.value, dict) and TAKEN_BACK not in row.value


def _is_choice(row: FactRow) -> bool:
    return isinstance(row.value, str) and read_config(row.value) is not None and _is_keyed(row)


def _is_level(row: FactRow) -> bool:
    # Empty where a search was taken up again.
    return isinstance(row.value, str) and len(row.value) <= 20 and _is_keyed(row)


def _is_keyed(row: FactRow) -> bool:
    """``kind:request:digest:workload``."""
    parts = row.name.split(":", 3)
    return len(parts) == 4 and _is_workload(parts[3])


def _is_workload(text: str) -> bool:
    try:
        return Workload.parse(text).op.isidentifier()
    except ValueError:
        return False


def _is_speed(row: FactRow) -> bool:
    return isinstance(row.value, dict) and _is_rate(row.value.get("decode_tok_s"))


def _is_roof(row: FactRow) -> bool:
    return _is_rate(row.value)


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


#: Beginnings of the names of facts that move, and whether such a fact makes sense.
_FACTS: dict[str, Callable[[FactRow], bool]] = {
    RULES: _is_rules,
    "choice:": _is_choice,
    "tuned:": _is_level,
    "speed:": _is_speed,
    "roof.": _is_roof,
}


# -- rules -----------------------------------------------------------------------------------------


def _unite(one: Rules, other: Rules) -> Rules:
    for op in one.pins.keys() & other.pins.keys():
        if one.pins[op] != other.pins[op]:
            both = " and to ".join(sorted((one.pins[op], other.pins[op])))
            raise CacheError(f"{op} is pinned to {both}: clkiln cache unpin {op}, {_OR}")
    variants, configs = dict(one.variants), dict(one.configs)
    for key, ban in other.variants.items():
        variants[key] = min(variants.get(key, ban), ban, key=_rank)
    for choice, ban in other.configs.items():
        configs[choice] = min(configs.get(choice, ban), ban, key=_rank)
    ordered = dict(sorted(configs.items(), key=lambda item: tuple(map(str, item[0]))))
    return Rules(variants, ordered, {**one.pins, **other.pins})


def _taken(values: list[Any]) -> dict[str, Any]:
    """What was taken back here; of the values of a fact, only the one of this file has any."""
    return next(({TAKEN_BACK: value[TAKEN_BACK]} for value in values if taken_back(value)), {})


_OR = "or import with --without-rules"


def _rank(ban: Ban) -> tuple[Any, ...]:
    """A user's, which holds for every version of a kernel, before a check's; then the oldest."""
    return ban.digest != "", ban.since, *asdict(ban).values()


def _check_rules(rules: Rules) -> None:
    """Raise :class:`CacheError` for what ``clkiln cache ban`` and ``pin`` would have refused."""
    for op, variant in sorted(rules.pins.items()):
        if (op, variant) in rules.variants:
            reason = rules.variants[op, variant].reason
            todo = f"clkiln cache unpin {op} or unban {op}={variant}, {_OR}"
            raise CacheError(f"{op}={variant} is both pinned and banned ({reason}): {todo}")
    for op in sorted({op for op, _ in rules.variants}):
        if not rules.left(op):
            todo = f"clkiln cache unban {op}=VARIANT, {_OR}"
            raise CacheError(f"together the bans leave no variant of {op}: {todo}")
    linear = SHARING[:2]
    if ({op for op, _ in rules.variants} | rules.pins.keys()) & set(linear) and not places(
        rules, None, linear
    ):
        both = " and ".join(linear)
        raise CacheError(
            f"together the rules leave no place for weights, which {both} both read: "
            f"clkiln cache rules lists those here; unban or unpin one, {_OR}"
        )
