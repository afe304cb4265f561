"""What several tests of the engine watch."""

from __future__ import annotations

import pytest

from clkiln.runtime.memory import MemoryBudget


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
