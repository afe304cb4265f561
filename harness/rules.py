"""Where bans and pins lie: one fact of a driver in its device's cache file.

What was shipped with the device holds too, and so does what is shipped later. The own fact has what
is the user's, and what was taken back of the shipped: each ban as it was, so that another one of
the same variant holds again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..cache.layered import LayeredStore
from ..cache.reader import Warn
from ..cache.store import Store
from ..kernels.rules import Rules

K = TypeVar("K")
V = TypeVar("V")

#: Name of the fact, and of the part of it that says what was taken back.
RULES, TAKEN_BACK = "rules", "taken_back"


def read_rules(store: Store, driver: str) -> Rules:
    """The rules of a driver that hold for today's kernels, the shipped ones among them."""
    own = store.own_fact(RULES, driver=driver)
    shipped = Rules.of(store.shipped_fact(RULES, driver=driver))
    return over(shipped, Rules.of(own), taken_back(own))


def change_rules(store: Store, driver: str, change: Callable[[Rules], Rules]) -> Rules:
    """Put what ``change`` makes of a driver's rules in their place, and return it.

    Nobody else changes them in between. What ``change`` raises goes through and nothing is written.
    Raises :class:`~clkiln.errors.CacheError` where they can't be read or kept, in any store.
    """
    shipped, after = Rules.of(store.shipped_fact(RULES, driver=driver)), Rules()

    def changed(value: Any | None) -> dict[str, Any]:
        nonlocal after
        own, taken = Rules.of(value), taken_back(value)
        before = over(shipped, own, taken)
        after = change(before)
        return _own(before, after, shipped, own, taken)

    store.update_fact(RULES, changed, driver=driver)
    return after


def rules_on_file(path: Path, driver: str, warn: Warn = lambda text: None) -> Rules:
    """As :func:`read_rules`, from a cache file that need not exist, and what was shipped under it.

    Raises :class:`~clkiln.errors.CacheError` for a file that is none of clkiln's.
    """
    with LayeredStore.open_to_read(path, warn) as store:
        return read_rules(store, driver)


# -- what was shipped ------------------------------------------------------------------------------


def taken_back(value: Any) -> Rules:
    """What a fact's value says not to hold any more of the shipped rules."""
    return Rules.of(value.get(TAKEN_BACK) if isinstance(value, dict) else None)


def own_rules(value: Any) -> Rules:
    """Those of a fact's value that hold where nothing was shipped."""
    return over(Rules(), Rules.of(value), Rules())


def over(shipped: Rules, own: Rules, taken: Rules) -> Rules:
    """Own rules over shipped ones, of which some were ``taken`` back.

    The own ones go first, but a pin of either gives way to a ban of the other.
    """
    variants = {**_without(shipped.variants, taken.variants), **own.variants}
    configs = {**_without(shipped.configs, taken.configs), **own.configs}
    pins = {**_without(shipped.pins, taken.pins), **own.pins}
    return Rules(variants, configs, {o: v for o, v in pins.items() if (o, v) not in variants})


def _own(before: Rules, after: Rules, shipped: Rules, own: Rules, taken: Rules) -> dict[str, Any]:
    """The fact that makes ``after`` of the shipped rules; what is not changed stays as it is."""
    # A pin that gave way to a ban stays behind it, and does not come back with the change itself.
    pins = {**_without(shipped.pins, taken.pins), **own.pins}
    freed = {o: v for o, v in pins.items() if (o, v) not in after.variants}
    before = replace(before, pins={**before.pins, **freed})
    kept = Rules(
        _changed(before.variants, after.variants, own.variants),
        _changed(before.configs, after.configs, own.configs),
        _changed(before.pins, after.pins, own.pins),
    )
    gone = Rules(
        _taken(before.variants, after.variants, shipped.variants, taken.variants),
        _taken(before.configs, after.configs, shipped.configs, taken.configs),
        _taken(before.pins, after.pins, shipped.pins, taken.pins),
    )
    return kept.as_dict() | ({TAKEN_BACK: gone.as_dict()} if gone else {})


def _without(rules: Mapping[K, V], taken: Mapping[K, V]) -> dict[K, V]:
    return {key: rule for key, rule in rules.items() if taken.get(key) != rule}


def _changed(before: Mapping[K, V], after: Mapping[K, V], own: Mapping[K, V]) -> dict[K, V]:
    kept = {key: rule for key, rule in own.items() if key in after or key not in before}
    return kept | {key: rule for key, rule in after.items() if before.get(key) != rule}


def _taken(
    before: Mapping[K, V], after: Mapping[K, V], shipped: Mapping[K, V], taken: Mapping[K, V]
) -> dict[K, V]:
    gone = {key: rule for key, rule in shipped.items() if key in before and key not in after}
    return {key: rule for key, rule in taken.items() if key not in after} | gone
