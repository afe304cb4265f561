"""``tune --simulate`` and ``tune --export``: recorded spaces, ours and others'."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clk_cli import COMMAND, Result
from clk_tuning import chance
from clkiln.cache.rows import TrialRow
from clkiln.cache.store import Store
from clkiln.tuner.recorded import read_spaces, t4_document, t4_result

Call = Callable[..., Result]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Two workloads, 96 configurations of one and 4 of the other."""
    rows = [
        t4_result({"x": x, "y": y}, "ok", 1e-3 * (1 + x / 8 + y + chance(x, y)),
                  workload="gemv n=1", compile_time=0.5, repeats=10)
        for x in (1, 2, 4, 8, 16, 24, 32, 48) for y in range(12)
    ]  # fmt: skip
    rows += [t4_result({"z": z}, "crash", None, workload="gemm n=2", cost=0.3) for z in range(4)]
    path = tmp_path / "recorded.json"
    path.write_text(t4_document(rows))
    return path


def test_a_simulated_search(call: Call, recorded: Path) -> None:
    result = call("tune", "--simulate", recorded, "--budget", "60s")
    assert (result.code, result.err) == (0, "")
    first, second = result.out.splitlines()
    assert first.startswith("gemv n=1: ") and "100.0% of the optimum" in first and "y=0" in first
    assert second == "gemm n=2: 4 of 4 configurations in 1 s of recorded time: none of them worked"
    report = json.loads(call("tune", "--simulate", recorded, "--budget", "60s", "--json").out)
    gemv, gemm = report["spaces"]
    assert report["budget_s"] == 60
    assert gemv["trials"] < 96 == gemv["configurations"] and 30 <= gemv["seconds"] < 31
    assert gemv["best_s"] == gemv["optimum_s"] < gemv["random_s"]
    assert gemm["best"] is None and gemm["optimum_s"] is None


def test_levels_are_recorded_time(call: Call, recorded: Path) -> None:
    """As of a real run: 20 trials at most of each workload."""
    report = json.loads(call("tune", "--simulate", recorded, "--level", "fast", "--json").out)
    assert [space["trials"] for space in report["spaces"]] == [20, 4]


def trials_in(path: Path) -> dict[str, set[str]]:
    with Store.open(path) as store:
        found: dict[str, set[str]] = {}
        for row in store.trials():
            assert row.config not in found.setdefault(row.workload, set())
            found[row.workload].add(row.config)
        return found


def test_what_was_kept_is_continued(call: Call, recorded: Path, tmp_path: Path) -> None:
    """Killed at moments of all sorts, in the end it has tried what an undisturbed run tries."""
    whole, cut = tmp_path / "whole.sqlite", tmp_path / "cut.sqlite"
    arguments = ["tune", "--simulate", str(recorded), "--level", "normal"]
    assert call(*arguments, "--cache", whole).code == 0
    before: dict[str, set[str]] = {}
    for pause in (0.0, 0.03):
        with subprocess.Popen(
            [*COMMAND, *arguments, "--cache", str(cut)], stdout=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and not cut.exists():
                time.sleep(0.01)
            time.sleep(pause)
            os.kill(process.pid, signal.SIGKILL)
        if cut.exists():
            now = trials_in(cut)
            assert all(now.get(name, set()) >= kept for name, kept in before.items())
            before = now
    assert call(*arguments, "--cache", cut).code == 0
    assert trials_in(cut) == trials_in(whole)
    assert call("report", "--cache", cut).code == 0


def test_export_of_a_cache_file(call: Call, tmp_path: Path) -> None:
    cache, file = tmp_path / "c.sqlite", tmp_path / "out.json"
    with Store.open(cache) as store:
        for number, (config, status, seconds) in enumerate(
            [('{"R":4,"variant":"buffer"}', "ok", 2e-3),
             ('{"R":4,"variant":"buffer"}', "ok", 4e-3),
             ('{"R":8,"variant":"buffer"}', "ok", 1e-3),
             ('{"R":8,"variant":"buffer"}', "wrong result", None)]
        ):  # fmt: skip
            store.add_trial(TrialRow("gemv n=1", "old", "d", config, "ok", 9.0))
            store.add_trial(TrialRow("gemv n=1", "new", "d", config, status, seconds,
                                     repeats=5, compile_time=0.5 + number))  # fmt: skip
        store.add_trial(TrialRow("gemm n=1", "new", "d", '{"T":1,"variant":"image"}', "crash"))
    result = call("tune", "--cache", cache, "--export", "t4", file)
    assert result.out == f"wrote 3 configurations of 2 workloads to {file}\n"
    gemm, gemv = read_spaces(file)
    assert (gemm.name, gemv.name) == ("gemm n=1", "gemv n=1")
    assert gemv.configs == [{"R": 4, "variant": "buffer"}, {"R": 8, "variant": "buffer"}]
    assert [trial.time for trial in gemv.trials] == [pytest.approx(3e-3), None]
    assert gemv.trials[1].status == "wrong result"
    assert gemv.costs[0] == pytest.approx(1.5 + 10 * 3e-3)
    only = call("tune", "--cache", cache, "--kernel", "gemm", "--export", "t4", file, "--json")
    assert json.loads(only.out)["configurations"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("--simulate none.json", 2, "none.json: No such file"),
        ("--simulate F MODEL", 2, "--simulate goes without MODEL"),
        ("--simulate F --dry-run", 2, "--simulate goes without --dry-run"),
        ("--simulate F --export t4 x.json", 2, "--simulate goes without --export"),
        ("--export csv x.json", 2, "'csv' is not"),
        ("--export t4 x.json MODEL", 2, "--export goes without MODEL"),
        ("--export t4 x.json --cache none.sqlite", 1, "there is no cache file"),
        ("--export t4 nowhere/x.json --cache C", 1, "cannot write nowhere/x.json: No such file"),
        ("--export t4 x.json --cache C --kernel rope", 2, "holds no trials of rope"),
    ],
)
def test_one_line_says_what_is_wrong(
    call: Call, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: str, code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with Store.open(tmp_path / "C") as store:
        store.add_trial(TrialRow("gemv n=1", "d", "d", '{"R":4,"variant":"buffer"}', "ok", 1.0))
    recorded.rename(tmp_path / "F")
    result = call("tune", *arguments.split())
    assert result.code == code and says in result.err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["C", "F"]
