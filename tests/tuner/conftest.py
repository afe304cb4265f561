"""What the tests of tuning runs share: a store, and runs on a synthetic device."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from clk_cache import memory_store
from clk_tuning import DRIVER, FEW, INFO, USES, Synthetic, with_roofs
from clkiln.cache.store import Store
from clkiln.tuner import session
from clkiln.tuner.levels import Level
from clkiln.tuner.session import TuningRun


@pytest.fixture
def store() -> Iterator[Store]:
    with memory_store() as store:
        yield with_roofs(store, DRIVER)


@pytest.fixture
def tune(store: Store, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes one tuning run on a synthetic device, and returns its result."""

    def run(device: Synthetic, uses: Any = USES, level: Level = FEW, **options: Any) -> Any:
        info = options.pop("info", INFO)
        monkeypatch.setattr(session, "Worker", device.worker)
        monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=device.monotonic))
        return TuningRun(store, info, uses, level, **options).run()

    return run
