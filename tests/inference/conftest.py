"""What several tests of the engine watch."""

from __future__ import annotations

from pathlib import Path

import pytest

import clk_engine
from clkiln.runtime.memory import MemoryBudget


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache file of the test's own, with the session's programs."""
    return clk_engine.own_cache(tmp_path / "own.sqlite")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been asked of the memory budget."""
    asked: list[str] = []
    take = MemoryBudget.take

    def noted(self: MemoryBudget, nbytes: int, what: str) -> None:
        asked.append(what)
        take(self, nbytes, what)

    monkeypatch.setattr(MemoryBudget, "take", noted)
    return asked
