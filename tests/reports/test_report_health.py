"""Health of a cache file: what an engine left is sound and needed; what is not is told apart."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import clk_devices
import clk_engine
from clkiln.cache.rows import BestRow, DriverRow, TrialRow
from clkiln.cache.store import Store
from clkiln.errors import CacheError
from clkiln.harness.keys import key_of, read_choice, split_label
from clkiln.kernels import SPECS
from clkiln.kernels.types import Workload
from clkiln.reports.health import Health, examine, obsolete_programs
from clkiln.runtime.device import DeviceInfo, list_devices


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return clk_engine.used_cache(tmp_path_factory.mktemp("used") / "x.sqlite").read_bytes()


@pytest.fixture
def path(tmp_path: Path, used: bytes) -> Path:
    path = tmp_path / "x.sqlite"
    path.write_bytes(used)
    return path


def present() -> list[DeviceInfo]:
    return [device.info for device in list_devices()]


def findings(health: Health, damage: bool) -> str:
    return "\n".join(f"{f.what} {f.todo}" for f in health.findings if f.damage == damage)


def test_what_an_engine_left_is_sound_and_needed(path: Path) -> None:
    before = path.read_bytes()
    health = examine(path, present())
    assert not health.damaged and not health.obsolete, health.findings
    assert health.contents.binaries and health.contents.best
    assert path.read_bytes() == before
    for row in health.contents.binaries:
        workload, config = split_label(row.label)
        assert read_choice(workload, config) is not None
        assert key_of(row.driver, workload, config) == row.key


def test_a_replaced_driver_and_one_that_is_away(path: Path) -> None:
    own = clk_engine.a_device().info
    newer = replace(own, driver_version="99.1")
    programs = examine(path, present()).contents.binaries
    health = examine(path, [newer])
    assert set(health.obsolete) == {row.key for row in programs}
    assert "was replaced" in findings(health, False) and not health.damaged
    # Another device tells nothing of this one, and neither does none.
    for others in ([clk_devices.make_info()], []):
        health = examine(path, others)
        assert not health.obsolete and not health.damaged
        assert "is not there now" in findings(health, False)


def test_what_was_run_under_limits_is_of_the_device_that_is_there(
    path: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copyfile(path, tmp_path / "limited.sqlite"))
    with clk_engine.engine(cache=cache, limits=["local-32k"]) as engine:
        clk_engine.warm(engine, 2)
        key = engine.device.driver_key
    health = examine(cache, present())
    assert key in {row.driver for row in health.contents.drivers}
    assert key in {row.driver for row in health.contents.binaries}
    assert not health.damaged and not health.obsolete, health.findings
    assert findings(health, False) == ""


def test_a_kernel_that_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Edited(type(SPECS["gemv"])):  # type: ignore[misc]
        version = 99
        file = "gemm/gemm.cl"

    monkeypatch.setitem(SPECS, "gemv", Edited())
    health = examine(path, present())
    assert not health.damaged
    gone = {row.key for row in health.contents.binaries if row.label.startswith("gemv ")}
    assert gone and set(health.obsolete) == gone
    assert set(health.obsolete.values()) == {"its kernel has changed"}
    choices = sum(row.workload.startswith("gemv ") for row in health.contents.best)
    assert f"{choices} choices and 0 trials of kernels that have changed" in findings(health, False)
    monkeypatch.delitem(SPECS, "gemv")
    health = examine(path, present())
    assert f"{choices} rows of kernels that this clkiln does not have" in findings(health, False)
    assert set(health.obsolete) == gone


def row(**changes: object) -> BestRow:
    workload = Workload.parse(SPECS["gemv"].example)
    config = SPECS["gemv"].safe(workload, clk_devices.make_info())
    sound = BestRow(str(workload), "driver", SPECS["gemv"].digest(), str(config), 1e-3)
    return replace(sound, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "sound"),
    [
        ({"config": "{}"}, False),
        ({"config": "fast, please"}, False),
        ({"config": '{"variant":"buffer","LX":3}'}, False),
        ({"workload": "gemv  k=1"}, False),
        ({"time": -1.0}, False),
        ({"time": float("inf")}, False),
        ({}, True),
        ({"digest": "of an older kernel", "config": '{"variant":"tape"}'}, True),
    ],
)
def test_parameters_that_make_no_sense(tmp_path: Path, bad: dict[str, object], sound: bool) -> None:
    path = tmp_path / "x.sqlite"
    with Store.open(path) as store:
        store.set_best(row(**bad))
    health = examine(path, [])
    assert health.damaged != sound
    assert ("parameters make no sense" in findings(health, True)) != sound


def test_a_trial_may_be_of_any_space_and_must_parse(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    outside = TrialRow(
        row().workload, "driver", row().digest, '{"variant":"buffer","LX":3}', "constraint"
    )
    with Store.open(path) as store:
        store.put_driver(DriverRow("driver", {}))
        store.add_trial(outside)
    assert not examine(path, []).damaged
    with Store.open(path) as store:
        store.add_trial(replace(outside, config="["))
    assert "1 row of parameters" in findings(examine(path, []), True)


def test_damaged_programs_are_counted_and_named(path: Path) -> None:
    with Store.open(path) as store:
        [first, second, *_] = store.binaries()
        sql = "UPDATE binaries SET payload = x'00' WHERE key IN (?, ?)"
        store._connection.execute(sql, (first.key, second.key))
        count = len(store.binaries())
    health = examine(path, present())
    assert f"2 programs of {count} damaged" in findings(health, True)
    assert f"clkiln cache prune --cache {path}" in findings(health, True)


def test_a_label_that_tells_nothing_is_no_reason(path: Path) -> None:
    with Store.open(path, write=False) as store:
        rows = [replace(each, label="a program") for each in store.binaries()]
        assert obsolete_programs(rows, store.drivers(), present()) == {}


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="does not exist"):
        examine(tmp_path / "none.sqlite", [])
