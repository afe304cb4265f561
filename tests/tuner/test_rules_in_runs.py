"""Bans and pins in tuning runs: what is banned is neither tried nor chosen, pins force."""

from __future__ import annotations

from typing import Any

import pytest

from clk_cache import write_rules
from clk_tuning import (
    DRIVER,
    FEW,
    FREE,
    INFO,
    USES,
    Synthetic,
    best_configs,
    missing_binaries,
    split_groups,
)  # fmt: skip
from clkiln.cache.store import Store
from clkiln.errors import UnsupportedOperation
from clkiln.kernels import SPECS
from clkiln.kernels.rules import Ban, Rules
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.variants import VariantRequest, choice_fact
from clkiln.tuner.record import reopen, undone
from clkiln.tuner.search import Search

BAN = Ban("wrong")
BOTH = [("gemv", "image"), ("gemm", "image"), ("gemv", "buffer")]


def chosen_variants(store: Store, op: str) -> set[str]:
    rows = best_configs(store).items()
    return {Config.parse(config).variant for name, config in rows if name.split(" ")[0] == op}


@pytest.mark.parametrize(("op", "variant"), BOTH)
def test_what_is_banned_is_never_tried(store: Store, tune: Any, op: str, variant: str) -> None:
    write_rules(store, DRIVER, Rules().ban(op, variant, BAN))
    device = Synthetic(failing=0.2)
    tune(device)
    tried = {(workload.op, config.variant) for workload, config in device.trials}
    assert (op, variant) not in tried
    assert {each for each in BOTH if each[0] != op} <= tried, "the others are"
    assert split_groups(store, DRIVER, USES) == []
    assert missing_binaries(store, DRIVER) == []


@pytest.mark.parametrize("variant", ["image", "buffer"])
def test_pins_force_and_readers_of_the_same_weight_follow(
    store: Store, tune: Any, variant: str
) -> None:
    write_rules(store, DRIVER, Rules().pin("gemv", variant))
    tune(Synthetic())
    assert chosen_variants(store, "gemv") == {variant}
    assert split_groups(store, DRIVER, USES) == []


def test_a_winner_that_is_banned_later_is_searched_again(store: Store, tune: Any) -> None:
    tune(Synthetic())
    assert undone(store, DRIVER, USES, FEW, FREE) == []
    use = USES[5]
    winner = Config.parse(best_configs(store)[str(use.workload)])
    rules = Rules().ban_config(use.workload, winner, BAN)
    write_rules(store, DRIVER, rules)
    assert undone(store, DRIVER, USES, FEW, FREE) == [use]
    device = Synthetic()
    tune(device, [use])
    assert winner not in {config for _, config in device.trials}
    assert best_configs(store)[str(use.workload)] != str(winner)
    assert undone(store, DRIVER, USES, FEW, FREE) == []
    write_rules(store, DRIVER, Rules())
    reopen(store, DRIVER, use.workload.op)
    again = undone(store, DRIVER, USES, FEW, FREE)
    assert again == [each for each in USES if each.workload.op == use.workload.op]


def test_a_banned_default_is_replaced(store: Store, tune: Any) -> None:
    rules = Rules()
    for use in USES:
        safe = SPECS[use.workload.op].safe(use.workload, INFO)
        rules = rules.ban_config(use.workload, safe, BAN)
    write_rules(store, DRIVER, rules)
    device = Synthetic()
    tune(device)
    assert not [each for each in device.trials if each in rules.configs]
    assert len(store.best_rows(driver=DRIVER)) == len(USES)


def test_nothing_left_is_said(store: Store, tune: Any) -> None:
    rules = Rules()
    for variant in SPECS["add"].variants:
        rules = rules.ban("add", variant.name, BAN)
    write_rules(store, DRIVER, rules)
    with pytest.raises(UnsupportedOperation, match="add=buffer is banned"):
        tune(Synthetic())


def test_a_search_too_large_to_enumerate_honours_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clkiln.tuner.search.ENUMERABLE", 0)
    workload = Workload.parse("gemv bias=no fuse=none k=64 n=96 w=q4_1")
    spec = SPECS["gemv"]
    safe = spec.safe(workload, INFO)
    rules = Rules().ban("gemv", "image", BAN).ban_config(workload, safe, BAN)
    search = Search(spec, workload, INFO, rules=rules, starts=spec.starts(workload, INFO))
    for _ in range(25):
        config = search.ask()
        assert config is not None and rules.allows(workload, config)
        search.tell(config, 1e-3)


def test_the_command_line_goes_before_a_pin(store: Store, tune: Any) -> None:
    write_rules(store, DRIVER, Rules().pin("gemv", "image"))
    device = Synthetic()
    tune(device, variants=VariantRequest.parse(["gemv=buffer", "gemm=buffer", "embedding=buffer"]))
    assert {c.variant for w, c in device.trials if w.op == "gemv"} == {"buffer"}


def test_a_kind_that_one_reader_may_not_have_none_of_its_weight_has(
    store: Store, tune: Any
) -> None:
    """As asked of all operations: it is kept where it can run, and a weight lies in one place."""
    write_rules(store, DRIVER, Rules().ban("gemv", "image", BAN))
    device = Synthetic()
    tune(device, variants=VariantRequest.parse(["image"]))
    kinds = {op: {c.variant for w, c in device.trials if w.op == op} for op in ("gemv", "rmsnorm")}
    assert kinds == {"gemv": {"buffer"}, "rmsnorm": {"image"}}
    for group in {use.group for use in USES if use.group}:
        readers = [use.workload for use in USES if use.group == group]
        chosen = [
            Config.parse(
                str(store.fact(choice_fact("image", w, SPECS[w.op].digest()), driver=DRIVER))
            )
            for w in readers
        ]
        layouts = {SPECS[w.op].layout(w, c) for w, c in zip(readers, chosen, strict=True)}
        assert len(layouts) == 1
