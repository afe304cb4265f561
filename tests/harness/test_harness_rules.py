"""Where bans and pins lie, and that nobody undoes another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from clkiln.cache.store import Store
from clkiln.errors import UsageError
from clkiln.harness.rules import change_rules, read_rules
from clkiln.kernels.rules import Ban, Rules

WRONG = Ban("wrong")


def test_two_stores_lose_none_of_each_others_rules(tmp_path: Path) -> None:
    """One decides by what the other has written since it was opened."""
    path = tmp_path / "x.sqlite"
    with Store.open(path) as one, Store.open_or_memory(path, pytest.fail) as other:
        assert not read_rules(one, "mine") and not read_rules(other, "mine")
        change_rules(one, "mine", lambda rules: rules.ban("gemv", "image", WRONG))
        kept = change_rules(other, "mine", lambda rules: rules.pin("add", "buffer"))
        assert kept == Rules().ban("gemv", "image", WRONG).pin("add", "buffer")
        assert read_rules(one, "mine") == kept and not read_rules(one, "another")


def test_a_change_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    def refuse(rules: Rules) -> Rules:
        raise UsageError(f"no: {rules.pins}")

    with Store.open(tmp_path / "x.sqlite") as store:
        before = change_rules(store, "mine", lambda rules: rules.pin("add", "buffer"))
        with pytest.raises(UsageError, match="buffer"):
            change_rules(store, "mine", refuse)
        assert read_rules(store, "mine") == before
