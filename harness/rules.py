"""Where bans and pins lie: one fact of a driver in its device's cache file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cache.layered import LayeredStore
from ..cache.paths import shipped_file
from ..cache.store import Store
from ..kernels.rules import Rules

#: Name of the fact.
RULES = "rules"


def read_rules(store: Store, driver: str) -> Rules:
    """The rules of a driver that hold for today's kernels."""
    return Rules.of(store.fact(RULES, driver=driver))


def write_rules(store: Store, driver: str, rules: Rules) -> None:
    """Keep ``rules`` in place of those before. Raises :class:`~clkiln.errors.CacheError`."""
    store.set_fact(RULES, rules.as_dict(), driver=driver)


def change_rules(store: Store, driver: str, change: Callable[[Rules], Rules]) -> Rules:
    """Put what ``change`` makes of a driver's rules in their place, and return it.

    Nobody else changes them in between. What ``change`` raises goes through and nothing is written.
    Raises :class:`~clkiln.errors.CacheError` where they can't be read or kept, in any store.
    """

    def changed(value: Any | None) -> dict[str, Any]:
        return change(Rules.of(value)).as_dict()

    return Rules.of(store.update_fact(RULES, changed, driver=driver))


def rules_on_file(path: Path, driver: str) -> Rules:
    """As :func:`read_rules`, from a cache file that need not exist, and what was shipped under it.

    Raises :class:`~clkiln.errors.CacheError` for a file that is none of clkiln's.
    """
    shipped = shipped_file(path)
    if not path.exists() and shipped is not None:
        path = shipped
    if not path.exists():
        return Rules()
    with LayeredStore.open(path, write=False, warn=lambda text: None) as store:
        return read_rules(store, driver)
