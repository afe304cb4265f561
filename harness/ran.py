"""Under which drivers this machine's device has run: what an import brings has run elsewhere."""

from __future__ import annotations

from contextlib import suppress

from ..cache.store import Store
from ..errors import CacheError
from ..runtime.identity import split_key

#: Name of the fact, a list of keys without limits. No export carries what is of no driver.
RAN = "ran"


def ran_under(store: Store) -> set[str]:
    """Keys, without limits, of the drivers under which the device ran here or, as its shipped file
    says, where it comes from."""
    keys = {row.driver for row in store.runs()} | {row.driver for row in store.shipped_drivers()}
    noted = store.own_fact(RAN)
    if isinstance(noted, list):
        keys |= {str(key) for key in noted}
    else:
        # A file from before this was noted: who compiles has run.
        keys |= {row.driver for row in store.binaries()}
    return {split_key(key)[0] for key in keys}


def note_run(store: Store, driver: str) -> None:
    """Keep that the device runs under ``driver``; what can't be kept is not."""
    own, noted = split_key(driver)[0], store.own_fact(RAN)
    if isinstance(noted, list) and own in noted:
        return
    before = sorted(ran_under(store))

    def add(now: object) -> list[str]:
        known = now if isinstance(now, list) else before
        return known if own in known else [*known, own]

    with suppress(CacheError):
        store.update_fact(RAN, add)
