"""A cache file that was shipped with a device, read under the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from ..errors import CacheError
from .connection import connect_memory, connect_shipped
from .learnt import best_key
from .paths import shipped_file
from .reader import Reader, Warn, python_warning
from .rows import BestRow, DriverRow, TrialRow
from .store import Store


class LayeredStore(Store):
    """A device's own file, with what :func:`~clkiln.cache.paths.shipped_file` names under it.

    What a start reads is looked for in the own file first; what it lacks comes from the shipped
    one, to which nothing is written. What reports read, and all that deletes, is of the own file.
    A shipped file that is missing is no error, and one that cannot be used is a warning.
    """

    _shipped: Reader | None = None

    @classmethod
    def open(cls, path: Path, *, write: bool = True, warn: Warn = python_warning) -> Self:
        store = super().open(path, write=write, warn=warn)
        store._shipped = _open_shipped(path, warn)
        return store

    @classmethod
    def open_or_memory(cls, path: Path, warn: Warn) -> Self:
        store = super().open_or_memory(path, warn)
        store._shipped = _open_shipped(path, warn)
        return store

    @classmethod
    def open_to_read(cls, path: Path, warn: Warn) -> Self:
        """As :meth:`open` without ``write``, but the own file need not exist."""
        if path.exists():
            return cls.open(path, write=False, warn=warn)
        store = cls(connect_memory(), None, warn, write=False)
        store._shipped = _open_shipped(path, warn)
        return store

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._shipped is not None:
                self._shipped._connection.close()

    def best(self, workload: str, driver: str, digest: str) -> BestRow | None:
        found = super().best(workload, driver, digest)
        if found is None and self._shipped is not None:
            found = self._shipped.best(workload, driver, digest)
        return found

    def best_of_other_driver(self, workload: str, digest: str, driver: str) -> BestRow | None:
        found = super().best_of_other_driver(workload, digest, driver)
        if found is None and self._shipped is not None:
            found = self._shipped.best_of_other_driver(workload, digest, driver)
        return found

    def get_binaries(self, keys: Iterable[str]) -> dict[str, bytes]:
        wanted = list(keys)
        found = super().get_binaries(wanted)
        missing = [key for key in wanted if key not in found]
        if missing and self._shipped is not None:
            found |= self._shipped.get_binaries(missing)
        return found

    def fact(self, name: str, *, driver: str = "") -> Any | None:
        found = self.own_fact(name, driver=driver)
        return self.shipped_fact(name, driver=driver) if found is None else found

    def shipped_fact(self, name: str, *, driver: str = "") -> Any | None:
        return None if self._shipped is None else self._shipped.fact(name, driver=driver)

    def shipped_drivers(self) -> list[DriverRow]:
        return [] if self._shipped is None else self._shipped.drivers()

    def facts(self, driver: str | None = None) -> dict[tuple[str, str], Any]:
        under = {} if self._shipped is None else self._shipped.facts(driver)
        return under | super().facts(driver)

    def trials(self, **narrowed: str | None) -> list[TrialRow]:
        under = [] if self._shipped is None else self._shipped.trials(**narrowed)
        return under + super().trials(**narrowed)

    def best_rows(self, *, driver: str | None = None) -> list[BestRow]:
        own = super().best_rows(driver=driver)
        if self._shipped is None:
            return own
        keys = {best_key(row) for row in own}
        under = [row for row in self._shipped.best_rows(driver=driver) if best_key(row) not in keys]
        return sorted(own + under, key=lambda row: (row.workload, row.updated))


def _open_shipped(own: Path, warn: Warn) -> Reader | None:
    path = shipped_file(own)
    try:
        if path is None or not path.exists() or (own.exists() and os.path.samefile(path, own)):
            return None
        return Reader(connect_shipped(path), path, warn, write=False, tolerant=True)
    except (CacheError, OSError) as error:
        warn(f"{error}; going on without what was shipped with the device")
        return None
