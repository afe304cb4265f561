"""A model's check finds planted wrong kernels, names and bans them, and what runs then is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clk_engine
import clk_sabotage
import clkiln
from clk_cache import Warnings
from clk_checks import LITTLE, checked, loader
from clk_tuning import with_roofs
from clkiln.cache.paths import cache_file
from clkiln.cache.rows import DriverRow
from clkiln.cache.store import Store
from clkiln.errors import UnsupportedOperation
from clkiln.harness.ran import RAN, note_run
from clkiln.harness.rules import read_rules
from clkiln.harness.transfer import portable
from clkiln.inference.check import after_tuning, examine
from clkiln.inference.engine import Engine
from clkiln.inference.exam import Effort
from clkiln.inference.findings import CheckResult, check_fact
from clkiln.kernels import SPECS, rules
from clkiln.kernels.types import Config, Workload

HEAD = clk_engine.SMALL.get("vocab", 515)

Run = Callable[..., CheckResult]


@pytest.fixture
def check(cache: Path) -> Iterator[Run]:
    """``check(effort)``: the result; ``check.engine`` is what is left to run."""
    load = loader(cache)
    left: list[Engine] = []

    def run(effort: Effort = LITTLE) -> CheckResult:
        result, engine = examine(load(), load, effort)
        if engine is not None:
            left.append(engine)
        run.engine = engine  # type: ignore[attr-defined]
        return result

    yield run
    for engine in left:
        engine.close()


def logits_of(engine: Engine) -> list[np.ndarray]:
    engine.runner.reset()
    found = []
    for length in (40, 1):
        engine.runner.feed(clk_engine.prompt(length, HEAD))
        found.append(engine.runner.logits())
    return found


@pytest.fixture(scope="module")
def right() -> list[np.ndarray]:
    """The logits of sound kernels."""
    with clk_engine.engine() as engine:
        return logits_of(engine)


def assert_right(check: Any, right: list[np.ndarray]) -> None:
    for got, want in zip(logits_of(check.engine), right, strict=True):
        assert clk_engine.relative_error(got, want) < 1e-5


def test_what_is_right_is_found_to_be_right(check: Any, cache: Path) -> None:
    result = check(Effort(repeat=2, passes=(5, 1, 40, 1), seconds=1e9))
    assert result.ok and not result.faults and not result.banned
    assert (result.rounds, result.same) == (1, True)
    assert result.compared == result.launches > 60
    assert all(0 <= each.error < 1e-5 for each in result.logits) and len(result.logits) == 2
    ops = {workload.op for workload in check.engine.runner.planner.choices}
    assert {tally.op for tally in result.operations} == ops
    assert all(t.random and t.worst <= t.allowed for t in result.operations)
    with Store.open(cache, write=False) as store:
        ((name, _), kept), *others = [
            item for item in store.facts().items() if item[0][0].startswith("check:")
        ]
    assert not others and name == check_fact(check.engine.runner.graph)
    assert kept == result.as_dict()


def test_a_kernel_that_is_wrong_for_one_shape(
    check: Any, right: list[np.ndarray], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's, in one of 515 rows: the variant goes, and the weights' other readers follow."""
    clk_sabotage.plant(
        monkeypatch, "gemv", where=clk_sabotage.variant("buffer"),
        instead=("y[row] = out.lane[r];", f"y[row] = out.lane[r] + (N == {HEAD} && row == 7);"),
    )  # fmt: skip
    result = check()
    assert result.ok and result.rounds == 2
    fault = result.faults[0]
    assert (fault.workload.op, fault.config.variant, fault.kind) == ("gemv", "buffer", "wrong")
    assert fault.workload.size("n") == HEAD and fault.place.startswith("token_embd")
    assert fault.error and "worst at [0, 7]" in fault.message
    assert [each["what"] for each in result.banned] == ["gemv=buffer"]
    with Store.open(cache, write=False) as store:
        kept = read_rules(store, check.engine.device.driver_key)
    assert {*kept.variants} == {("gemv", "buffer")}
    choices = check.engine.runner.planner.choices
    for workload, choice in choices.items():
        if workload.op in ("gemv", "gemm", "embedding"):
            assert choice.config.variant == "image"
    assert_right(check, right)


def test_a_kernel_that_is_wrong_once_in_ten(
    check: Any, right: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    clk_sabotage.plant(
        monkeypatch, "attention_decode", where=clk_sabotage.variant("buffer"),
        behind=clk_sabotage.ONCE_IN_TEN,
    )  # fmt: skip
    result = check(Effort(10, (5, 1), 1e9, random=False, whole=False))
    assert result.ok
    fault = result.faults[0]
    assert (fault.workload.op, fault.config.variant) == ("attention_decode", "buffer")
    assert fault.kind == "same" and "1 of 10 times wrong" in fault.message
    assert [each["what"] for each in result.banned] == ["attention_decode=buffer"]
    assert_right(check, right)


def test_a_kernel_that_gives_nan_for_a_range_of_inputs(
    check: Any, right: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No activation of this model is so large: random inputs with outliers find it."""
    clk_sabotage.plant(
        monkeypatch, "rmsnorm", where=clk_sabotage.variant("buffer"),
        behind=clk_sabotage.NAN_IN_A_RANGE,
    )  # fmt: skip
    result = check(Effort(2, (5,), 1e9, random=True, whole=False))
    assert result.ok
    assert {fault.workload.op for fault in result.faults} == {"rmsnorm"}
    assert all(f.place.startswith("random inputs") for f in result.faults)
    assert "not finite" in result.faults[0].message
    assert [each["what"] for each in result.banned] == ["rmsnorm=buffer"]
    assert_right(check, right)


def test_of_a_single_variant_the_configuration_is_banned(
    check: Any, right: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one workload alone; a second try that is wrong, too, is followed by a third."""
    spec, seen = SPECS["argmax"], set[Config]()

    def first_two(workload: Workload, config: Config) -> bool:
        if len(seen) < 2:
            seen.add(config)
        return config in seen

    clk_sabotage.plant(
        monkeypatch, "argmax", only="buffer", where=first_two, behind="\n  out[0] ^= item == 0;\n"
    )
    result = check()
    assert result.ok and result.rounds == 3
    (workload,) = {fault.workload for fault in result.faults}
    assert workload.op == "argmax" and {fault.config for fault in result.faults} == seen
    safe = spec.safe(workload, check.engine.device)
    assert result.banned[0]["what"] == f"{workload} {safe}"
    assert check.engine.runner.planner.choices[workload].config not in seen
    assert_right(check, right)


def test_where_nothing_is_left_that_is_said_and_runs_refuse(
    check: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MOST_WRONG", 3)
    clk_sabotage.plant(monkeypatch, "argmax", behind="\n  out[0] ^= item == 0;\n")
    result = check()
    assert len(result.banned) == 4, "the one variant, then configurations of the other"
    assert not result.ok and check.engine is None
    assert "nothing is left" in result.problem and "argmax" in result.problem
    with pytest.raises(UnsupportedOperation, match="banned for this driver"):
        clk_engine.engine(cache=cache).__enter__()


def test_writing_where_nothing_belongs(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the rows of a step lie rows for larger ones; a launch has no business there."""
    clk_sabotage.plant(
        monkeypatch, "rmsnorm", where=clk_sabotage.variant("buffer"),
        behind="\n  if (item == 0 && row == 0 && get_num_groups(0) == 5) y[D * 5] = 1.0f;\n",
    )  # fmt: skip
    result = check()
    assert result.ok and "written past its end" in result.faults[0].message


def test_an_element_that_nobody_writes(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the layer before left there would hide it: outputs are poisoned before each launch."""
    clk_sabotage.plant(
        monkeypatch, "rmsnorm", where=clk_sabotage.variant("buffer"),
        instead=("i < D / V; i += LX) VSTORE(", "i < D / V - 1; i += LX) VSTORE("),
    )  # fmt: skip
    result = check()
    assert result.ok and "not finite" in result.faults[0].message


def test_without_a_file_to_keep_a_ban_in_nothing_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clk_sabotage.plant(monkeypatch, "rmsnorm", behind="\n  y[item] += 1.0f;\n")
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"somebody else's file" * 100)
    result = checked(path)
    assert not result.ok and "no cache file" in result.problem and not result.banned


# -- when it is done -------------------------------------------------------------------------------


def old_driver(path: Path) -> None:
    """Say that a driver before this one was used."""
    info = clk_engine.a_device().info
    with Store.open(path) as store:
        store.put_driver(DriverRow("an older driver", {"name": info.name}))
        note_run(store, "an older driver")


def is_checked(cache: Path) -> bool:
    """Whether a start checks the model."""
    said = Warnings()
    with clk_engine.engine(cache=cache, warn=said.append):
        return any("driver" in line and "--no-check" in line for line in said)


def test_a_driver_that_another_machine_ran_under_is_none_of_before(cache: Path) -> None:
    """As an import leaves it: only a row that says which one it is."""
    with Store.open(cache) as store:
        store.put_driver(DriverRow("another driver", {"name": "the same device"}))
    assert not is_checked(cache)
    with Store.open(cache) as store:
        assert RAN not in {fact.name for fact in portable(store.learnt()).facts}
        note_run(store, "another driver+1")
    assert is_checked(cache)


def test_a_file_from_before_runs_were_noted(cache: Path) -> None:
    with Store.open(cache) as store:
        store.put_binary("key", b"a program", label="x", driver="an older driver")
        store._connection.execute("DELETE FROM facts WHERE name = ?", (RAN,))
    assert is_checked(cache)


def test_a_driver_that_was_replaced_since_the_device_was_shipped(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLKILN_SYSTEM_CACHE_DIR", str(tmp_path / "system"))
    info = clk_engine.a_device().info
    own = cache_file(info.name, info.platform)
    old_driver(tmp_path / "system" / own.name)
    assert not own.exists() and is_checked(own) and not is_checked(own)


def test_once_after_a_driver_changed(cache: Path) -> None:
    """Said before and after; never on a start like any other, and not where it was not wanted."""
    said = Warnings()
    with clk_engine.engine(cache=cache, warn=said.append):
        assert not [line for line in said if "check" in line]
    old_driver(cache)
    with clk_engine.engine(cache=cache, warn=said.append, check=False):
        assert not [line for line in said if "check" in line]
    with clk_engine.engine(cache=cache, warn=said.append):
        before, after = [line for line in said if "check" in line]
    assert "driver" in before and "--no-check" in before
    assert "checked in " in after and "launches compared" in after
    again = Warnings()
    with clk_engine.engine(cache=cache, warn=again.append):
        assert not [line for line in again if "check" in line]


def test_what_a_new_driver_gets_wrong_is_replaced_at_the_first_start(
    cache: Path, right: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    old_driver(cache)
    clk_sabotage.plant(
        monkeypatch, "rmsnorm", where=clk_sabotage.variant("buffer"), behind="\n  y[item] += 1;\n"
    )
    said = Warnings()
    with clk_engine.engine(cache=cache, warn=said.append) as engine:
        for got, want in zip(logits_of(engine), right, strict=True):
            assert clk_engine.relative_error(got, want) < 1e-5
    assert [line for line in said if line.startswith("wrong here and banned: rmsnorm=buffer")]


def test_tuning_ends_with_a_check(cache: Path) -> None:
    device = clk_engine.a_device()
    with Store.open(cache) as store:
        with_roofs(store, device.info.driver_key)
    said = Warnings()
    options: dict[str, Any] = {"kernels": ["argmax"], "budget": 0.5, "warn": said.append}
    model = clk_engine.small_model()
    plain = clkiln.tune(model, device, cache, force=True, check=False, **options)
    assert plain.check is None
    done = clkiln.tune(model, device, cache, force=True, **options)
    assert done.check is not None and done.check["ok"] and not done.check["banned"]
    assert 0 < done.check["compared"] <= done.check["launches"]
    assert done.as_dict()["check"] == done.check and not said


def test_what_the_model_gets_wrong_after_tuning_is_replaced(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random inputs, which are all that a tuner has, need not show what a model's own do."""
    clk_sabotage.plant(
        monkeypatch, "argmax", where=clk_sabotage.variant("buffer"),
        behind="\n  if (item == 0) out[0] ^= 1;\n",
    )  # fmt: skip
    load = loader(cache)
    said = Warnings()
    found = after_tuning(load, said.append)
    assert found and found["ok"] and [each["what"] for each in found["banned"]] == ["argmax=buffer"]
    assert [line for line in said if line.startswith("wrong in the model and banned: argmax")]
