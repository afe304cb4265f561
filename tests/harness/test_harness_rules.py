"""Where bans and pins lie, and that nobody undoes another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clk_cache import memory_store, quick, write_rules
from clkiln.cache.connection import connect_memory
from clkiln.cache.layered import LayeredStore
from clkiln.cache.learnt import merge
from clkiln.cache.paths import cache_file, shipped_file
from clkiln.cache.rows import DriverRow
from clkiln.cache.store import Store
from clkiln.errors import CacheError, UsageError
from clkiln.harness.rules import RULES, change_rules, read_rules, rules_on_file
from clkiln.harness.transfer import check_shipped, combine, portable
from clkiln.kernels import SPECS
from clkiln.kernels.rules import Ban, Rules
from clkiln.kernels.types import Workload

WRONG = Ban("wrong")
#: Of operations that read no weight, and the two that do.
VARIANTS = [(op, variant) for op in ("gemv", "gemm", "add") for variant in ("buffer", "image")]
WORKLOAD = Workload.parse(SPECS["gemv"].example)
CONFIGS = list(SPECS["gemv"].space(WORKLOAD))[:3]


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


# -- over what was shipped -------------------------------------------------------------------------


@pytest.fixture
def own(cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a device's file, for which one with a ban and a pin was shipped."""
    monkeypatch.setenv("CLKILN_SYSTEM_CACHE_DIR", str(tmp_path / "system"))
    path = cache_file("a device", "a platform")
    ship(path, Rules().ban("gemv", "image", WRONG).pin("add", "buffer"))
    return path


def ship(own: Path, rules: Rules) -> None:
    path = shipped_file(own)
    assert path is not None
    with Store.open(path) as store:
        write_rules(store, "mine", rules)


def changed(own: Path, change: Callable[[Rules], Rules]) -> Rules:
    """What is read after a change, by two who read."""
    with LayeredStore.open(own) as store:
        kept = change_rules(store, "mine", change)
        assert read_rules(store, "mine") == kept
    assert rules_on_file(own, "mine") == kept
    return kept


def test_shipped_rules_hold_beside_the_own_ones(own: Path) -> None:
    assert {*rules_on_file(own, "mine").variants} == {("gemv", "image")}
    kept = changed(own, lambda rules: rules.ban("gemm", "image", WRONG))
    assert {*kept.variants} == {("gemv", "image"), ("gemm", "image")}
    with Store.open(own, write=False) as store:
        assert {*read_rules(store, "mine").variants} == {("gemm", "image")}, "no copy"
    ship(own, Rules().ban("rmsnorm", "image", WRONG))
    assert {*rules_on_file(own, "mine").variants} == {("gemm", "image"), ("rmsnorm", "image")}


def test_shipped_rules_can_be_taken_back(own: Path) -> None:
    assert changed(own, lambda rules: rules.unban("gemv", "image").unpin("add")) == Rules()
    # An update with the same in it changes nothing; what is new in it holds.
    ship(own, Rules().ban("gemv", "image", WRONG).ban("gemm", "image", WRONG))
    assert {*rules_on_file(own, "mine").variants} == {("gemm", "image")}
    again = Ban("wrong in another way")
    ship(own, Rules().ban("gemv", "image", again).pin("add", "image"))
    assert rules_on_file(own, "mine") == Rules({("gemv", "image"): again}, {}, {"add": "image"})
    # One's own mind may change, too.
    by_hand = Ban("as before")
    assert changed(own, lambda rules: rules.ban("gemv", "image", by_hand)).variants == {
        ("gemv", "image"): by_hand
    }
    assert changed(own, lambda rules: rules.unban("gemv", "image")).variants == {}


def test_a_pin_gives_way_to_a_ban_from_the_other_side(own: Path) -> None:
    """An update must not leave an operation nothing because of what its user likes better."""
    changed(own, lambda rules: rules.pin("gemm", "image"))
    before = Rules().ban("gemv", "image", WRONG)
    ship(own, before.ban("gemm", "image", WRONG))
    assert rules_on_file(own, "mine").pins == {}
    assert changed(own, lambda rules: rules.pin("rmsnorm", "buffer")).pins == {"rmsnorm": "buffer"}
    ship(own, before)
    assert rules_on_file(own, "mine").pins == {"gemm": "image", "rmsnorm": "buffer"}


def test_a_file_of_before_is_read(own: Path) -> None:
    """It began with a copy of what was shipped."""
    with Store.open(own) as store:
        store.set_fact(RULES, Rules().ban("gemv", "image", WRONG).as_dict(), driver="mine")
    assert {*rules_on_file(own, "mine").variants} == {("gemv", "image")}
    assert changed(own, lambda rules: rules.unban("gemv", "image")).variants == {}


def test_what_was_taken_back_stays_here(own: Path) -> None:
    """An export does not carry it, and an import does not end it."""
    changed(own, lambda rules: rules.unban("gemv", "image").ban("rmsnorm", "image", WRONG))
    with Store.open(own) as store:
        learnt = store.learnt()
        (row,) = learnt.facts
        sent = portable(replace(learnt, drivers=(_driver(),)))
        assert "taken_back" in row.value and sent.facts[0].value == {
            name: value for name, value in row.value.items() if name != "taken_back"
        }
        store.merge(merge([sent], combine), combine)
    assert {*rules_on_file(own, "mine").variants} == {("rmsnorm", "image")}
    with LayeredStore.open(own) as store:
        check_shipped(store, sent)
        one = Rules().ban("gemv", "buffer", WRONG)
        theirs = replace(sent, facts=(replace(sent.facts[0], value=one.as_dict()),))
        check_shipped(store, theirs)
        ship(own, Rules().ban("gemv", "image", Ban("another")))
        with pytest.raises(CacheError, match="leave no variant of gemv"):
            check_shipped(store, theirs)


def _driver() -> DriverRow:
    return DriverRow("mine", {}, "2026-01-01T00:00:00Z")


bans = st.builds(Ban, st.sampled_from(["a", "b"]))
layers = st.builds(
    Rules,
    st.dictionaries(st.sampled_from(VARIANTS), bans, max_size=3),
    st.dictionaries(st.sampled_from([(WORKLOAD, config) for config in CONFIGS]), bans, max_size=2),
    st.dictionaries(st.sampled_from(["gemv", "add"]), st.sampled_from(["buffer", "image"])),
)


@quick
@given(st.lists(st.tuples(layers, layers), min_size=1, max_size=4))
def test_what_is_read_is_what_was_kept(steps: list[tuple[Rules, Rules]]) -> None:
    """Whatever was shipped, whatever it is changed into, and what was shipped in between."""
    with memory_store() as shipped, LayeredStore(connect_memory(), None, pytest.fail) as store:
        store._shipped = shipped
        for below, after in steps:
            write_rules(shipped, "mine", below)
            pins = {o: v for o, v in after.pins.items() if (o, v) not in after.variants}
            wanted = replace(after, pins=pins)
            kept = change_rules(store, "mine", lambda rules, wanted=wanted: wanted)  # type: ignore[misc]
            assert kept == wanted == read_rules(store, "mine")
            change_rules(store, "mine", lambda rules: rules.pin("rmsnorm", "buffer"))
            change_rules(store, "mine", lambda rules: rules.unpin("rmsnorm"))
            assert read_rules(store, "mine") == wanted
        store._shipped = None
