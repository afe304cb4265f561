"""Recorded spaces: every format that is read, and searches over them by the recorded clock."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clk_tuning import chance
from clkiln.errors import UsageError
from clkiln.tuner.recorded import (
    INVALIDITY,
    RecordedSpace,
    RecordedTrial,
    read_spaces,
    t4_document,
    t4_result,
)
from clkiln.tuner.simulate import replay, strategy


def cache_row(x: int, use: int, time: float | str) -> dict[str, Any]:
    return {
        "x": x, "use": use, "time": time, "times": [1.0, 2.0], "compile_time": 400.0,
        "verification_time": 0, "benchmark_time": 90.0, "strategy_time": 0,
        "framework_time": 10.0, "GFLOP/s": 5.0, "timestamp": "2024-01-01 00:00:00+00:00",
    }  # fmt: skip


CACHE = {
    "device_name": "Some GPU",
    "kernel_name": "some_kernel",
    "problem_size": [4096, 4096],
    "tune_params_keys": ["x", "use"],
    "tune_params": {"x": [16, 32], "use": [0, 1]},
    "objective": "time",
    "cache": {
        "16,0": cache_row(16, 0, 4.0),
        "16,1": cache_row(16, 1, "CompilationFailedConfig"),
        "32,0": cache_row(32, 0, 2.0),
        "32,1": cache_row(32, 1, "RuntimeFailedConfig"),
    },
}
WHOLE = json.dumps(CACHE)


@pytest.mark.parametrize(
    "text",
    [WHOLE, json.dumps(CACHE, indent=1), WHOLE[:-2], WHOLE[:-2] + ",\n"],
    ids=["closed", "indented", "open", "open after a comma"],
)
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_a_cache_file_of_kernel_tuner(tmp_path: Path, text: str, zipped: bool) -> None:
    path = tmp_path / "cache.json"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    (space,) = read_spaces(path)
    assert space.name == "some_kernel on Some GPU"
    assert space.parameters == {"x": [16, 32], "use": [0, 1]}
    assert space.configs[2] == {"x": 32, "use": 0}
    np.testing.assert_allclose(space.times, [4e-3, math.nan, 2e-3, math.nan])
    np.testing.assert_allclose(space.costs, 0.5)
    ends = ["ok", "compile error", "ok", "launch error"]
    assert [trial.status for trial in space.trials] == ends
    assert space.optimum == 2e-3


def test_results_of_t4(tmp_path: Path) -> None:
    """As others write them: no unit is milliseconds, several measurements, failures without."""
    row = {
        "timestamp": "", "configuration": {"x": 1}, "invalidity": "correct", "correctness": 1,
        "times": {"compilation_time": 100.0, "framework": 50.0, "search_algorithm": 0,
                  "validation": 10.0, "runtimes": [20.0, 20.0]},
        "objectives": ["time"],
        "measurements": [{"name": "GFLOP/s", "value": 9.0, "unit": ""},
                         {"name": "time", "value": 20.0, "unit": ""}],
    }  # fmt: skip
    seconds = {**row, "configuration": {"x": 2},
               "measurements": [{"name": "time", "value": 0.5, "unit": "s"}]}  # fmt: skip
    late = {**row, "configuration": {"x": 3}, "invalidity": "timeout", "measurements": []}
    path = tmp_path / "t4.json"
    path.write_text(json.dumps({"schema_version": "1.0.0", "results": [row, seconds, late]}))
    (space,) = read_spaces(path)
    assert space.name == "t4.json"
    np.testing.assert_allclose(space.times, [0.02, 0.5, math.nan])
    np.testing.assert_allclose(space.costs, 0.2)
    assert space.trials[2].status == "timeout"


@pytest.mark.parametrize("status", INVALIDITY)
def test_an_export_is_read_again(tmp_path: Path, status: str) -> None:
    """Each workload as a space of its own, times and costs as they were."""
    time = 1.5e-3 if status == "ok" else None
    rows = [
        t4_result({"variant": "buffer", "r": r}, status, time, workload=f"gemv n={n}",
                  cost=0.1, compile_time=0.3, repeats=7)
        for n in (1, 2) for r in (1, 2)
    ]  # fmt: skip
    path = tmp_path / "ours.json"
    path.write_text(t4_document(rows))
    spaces = read_spaces(path)
    assert [space.name for space in spaces] == ["gemv n=1", "gemv n=2"]
    for space in spaces:
        assert space.configs == [{"variant": "buffer", "r": 1}, {"variant": "buffer", "r": 2}]
        np.testing.assert_allclose(space.costs, 0.4 + (7 * 1.5e-3 if time else 0))
        assert [trial.time for trial in space.trials] == [pytest.approx(time)] * 2
        expected = {"crash": "launch error"}.get(status, status)
        assert {trial.status for trial in space.trials} == {expected}


BAD = {
    "cut": (WHOLE[: len(WHOLE) // 2].encode(), "cut short"),
    "cut gzip": (gzip.compress(WHOLE.encode())[:-20], "cut short"),
    "foreign": (b'{"results": 3}', "neither"),
    "list": (b"[1, 2]", "JSON"),
    "binary": (b"\xff\xfe\x00", "no text"),
    "no keys": (json.dumps({"cache": {"a": {"time": 1}}}).encode(), "damaged"),
    "no configuration": (b'{"results": [{"times": {}}]}', "damaged"),
    "empty": (b'{"results": []}', "no configuration"),
}


@pytest.mark.parametrize(("content", "says"), BAD.values(), ids=BAD)
def test_what_is_no_recorded_space(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        read_spaces(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: No such file"):
        read_spaces(tmp_path / "none.json")


# -- searching -------------------------------------------------------------------------------------


def recorded(seed: int = 0) -> RecordedSpace:
    trials = []
    for x in (8, 16, 32, 64):
        for y in range(8):
            for z in ("p", "q"):
                fails = chance(seed, x, z) < 0.2
                time = None if fails else 1e-3 * (1 + 64 / x + y + chance(seed, x, y, z))
                cost = 0.5 + chance("cost", x, y, z)
                status = "compile error" if fails else "ok"
                trials.append(RecordedTrial({"x": x, "y": y, "z": z}, status, time, cost))
    return RecordedSpace("planted", trials)


def test_the_recorded_costs_are_the_clock() -> None:
    space = recorded()
    done = replay(space, seconds=12.0)
    costs = [space.costs[index] for index in done.asked]
    assert done.seconds == pytest.approx(sum(costs))
    assert sum(costs[:-1]) < 12.0 <= sum(costs)
    assert done.best is not None and done.best.time == np.nanmin(space.times[done.asked])
    bests = [best for _, best in done.curve]
    assert bests == sorted(bests, reverse=True) and bests[-1] == done.best.time


def test_limits_of_a_replay() -> None:
    space, kept = recorded(), []
    assert len(replay(space, trials=5, keep=kept.append).asked) == 5 == len(kept)
    assert replay(space, trials=0).best is None and replay(space, trials=0).share is None
    whole = replay(space)
    assert sorted(whole.asked) == list(range(len(space.trials)))
    assert whole.share == 1.0 and whole.best is not None
    assert whole.random == space.optimum == whole.best.time


def test_a_replay_that_was_cut_passes_by_what_it_had() -> None:
    space = recorded(3)
    whole = replay(space, trials=40, seed=2).asked
    assert replay(space, trials=15, seed=2).asked == whole[:15]


def test_all_failed() -> None:
    space = RecordedSpace("x", [RecordedTrial({"a": a}, "crash", None, 1.0) for a in range(9)])
    done = replay(space)
    assert len(done.asked) == 9 and done.best is None and done.curve == []
    assert done.share is None and done.random is None and space.optimum is None


class Spent(Exception):
    pass


def test_the_function_for_scorers() -> None:
    """It searches until the caller's exception, which passes through it."""
    space, seen = recorded(), []

    def evaluate(config: dict[str, Any]) -> float | None:
        if len(seen) == 20:
            raise Spent
        seen.append(config)
        time = space.trials[space.configs.index(config)].time
        return None if time is None else time * 1e3

    with pytest.raises(Spent):
        strategy(space, evaluate, 0)
    assert len({tuple(config.items()) for config in seen}) == 20
    best = min(space.trials[space.configs.index(c)].time or math.inf for c in seen)
    assert best <= sorted(space.times)[2]
    seen.clear()
    strategy(recorded(1), lambda config: seen.append(config), 0)
    assert len(seen) == len(space.configs)
