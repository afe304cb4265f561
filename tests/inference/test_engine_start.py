"""How an engine starts: from what the cache file holds, and from what it claims to hold."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import clk_engine
from clk_cache import Warnings
from clkiln.cache.rows import BestRow
from clkiln.cache.store import Store
from clkiln.errors import CacheMissError, OutOfDeviceMemory, UnsupportedOperation
from clkiln.harness.compare import Verdict
from clkiln.harness.operation import Operation
from clkiln.inference.engine import Engine
from clkiln.inference.plan import origins
from clkiln.kernels import SPECS
from clkiln.runtime.program import Program

QUESTION = "What is the capital of France?"


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A cache file in which all that the question takes is tuned."""
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with clk_engine.engine(cache=cache) as engine:
        ask(engine)
        clk_engine.play_tuning(engine)
    return cache


def ask(engine: Engine) -> list[int]:
    """The first tokens of the greedy answer."""
    return engine.generate(QUESTION, temperature=0, max_tokens=3).token_ids


# -- warm starts -----------------------------------------------------------------------------------


def test_what_was_compiled_is_kept(tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    with clk_engine.engine(cache=cache) as cold:
        answer = cold.generate(QUESTION, temperature=0, max_tokens=4)
        assert cold.runner.loader.counts.compiled > 10
    with clk_engine.engine(cache=cache) as warm:
        assert warm.generate(QUESTION, temperature=0, max_tokens=4).token_ids == answer.token_ids
        counts = warm.runner.loader.counts
        assert (counts.compiled, counts.from_cache) == (0, cold.runner.loader.counts.compiled)


def test_what_an_unfinished_answer_compiled_is_kept(tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    with clk_engine.engine(cache=cache) as cold:
        pieces = cold.stream(QUESTION, temperature=0, max_tokens=9)
        next(pieces), next(pieces)
    with clk_engine.engine(cache=cache) as warm:
        warm.generate(QUESTION, temperature=0, max_tokens=4)
        assert warm.runner.loader.counts.compiled == 0


def test_a_new_process_compiles_nothing(tmp_path: Path) -> None:
    """Not even the driver, whose own cache is empty: its first launches are as quick as others."""
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with clk_engine.engine(cache=cache) as engine:
        ask(engine)
        clk_engine.play_tuning(engine)
    command = [
        *(sys.executable, "-m", "clkiln"),
        *("run", clk_engine.small_model(), QUESTION, "-n", "3", "--temp", "0", "--json"),
        *("--device", engine.device.selector, "--cache", cache, "--require-cache"),
    ]
    (tmp_path / "pocl").mkdir()
    environment = {**os.environ, "POCL_CACHE_DIR": str(tmp_path / "pocl")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["programs"]["compiled"] == 0
    assert report["programs"]["from_cache"] > 10
    assert report["fallbacks"] == []
    assert report["timing"]["slowest_first_launch_s"] < 0.05


# -- what the cache file says ----------------------------------------------------------------------


def test_a_required_cache_is_enough(tuned: Path) -> None:
    warnings = Warnings()
    with clk_engine.engine(cache=tuned, require_cache=True, warn=warnings.append) as engine:
        ask(engine)
        assert engine.runner.loader.counts.compiled == 0
        assert engine.tuned
        assert engine.fallbacks() == []
    assert warnings == []


def test_a_required_cache_must_be_tuned(tmp_path: Path) -> None:
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with (
        pytest.raises(CacheMissError, match=r"not tuned.*\(and \d+ more\).*clkiln tune"),
        clk_engine.engine(cache=cache, require_cache=True),
    ):
        pass


def test_a_required_cache_must_be_tuned_for_prompts_too(tmp_path: Path) -> None:
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with clk_engine.engine(cache=cache) as engine:
        clk_engine.play_tuning(engine)
    with contextlib.closing(sqlite3.connect(cache)) as connection, connection:
        connection.execute("DELETE FROM best WHERE workload LIKE 'attention_prefill%'")
    with (
        pytest.raises(CacheMissError, match="attention_prefill"),
        clk_engine.engine(cache=cache, require_cache=True),
    ):
        pass  # said at the start, before any prompt


def test_a_required_cache_must_hold_the_programs(tuned: Path) -> None:
    with Store.open(tuned) as store:
        store.clear(binaries_only=True)
    with (
        pytest.raises(CacheMissError, match="no binary"),
        clk_engine.engine(cache=tuned, require_cache=True),
    ):
        pass


def test_parameters_of_another_driver_are_verified_and_used(tuned: Path) -> None:
    under_another_driver(tuned)
    for start in range(2):
        warnings = Warnings()
        with clk_engine.engine(cache=tuned, warn=warnings.append) as engine:
            ask(engine)
            assert set(origins(engine.runner.planner.choices)) == {"older driver"}
            assert not engine.tuned
            assert len(warnings) == 1, warnings
            assert "driver" in warnings[0]
            facts = engine.store.facts(engine.device.driver_key)
        verified = [name for name, _ in facts if name.startswith("verified ")]
        assert len(verified) == len(engine.runner.planner.choices), f"start {start}"
    with pytest.raises(CacheMissError, match="another driver"):
        clk_engine.engine(cache=tuned, require_cache=True).__enter__()


def test_wrong_parameters_of_another_driver_are_not_used(
    tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = under_another_driver(tuned)
    spoilt = {row.workload for row in rows if row.workload.startswith(("gemm", "argmax"))}
    verify = Operation.verify

    def verdict(self: Operation, *args: object, **named: object) -> Verdict:
        if str(self.workload) in spoilt:
            return Verdict(False, 1.0, "off by one")
        return verify(self, *args, **named)

    monkeypatch.setattr(Operation, "verify", verdict)
    warnings = Warnings()
    with clk_engine.engine(cache=tuned, warn=warnings.append) as engine:
        ask(engine)
        for workload, choice in engine.runner.planner.choices.items():
            assert choice.origin == ("default" if str(workload) in spoilt else "older driver")
    wrong = [line for line in warnings if "off by one" in line]
    assert len(wrong) == len(spoilt)
    assert len(warnings) == len(spoilt) + 1


@pytest.mark.parametrize("another", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        "", "{", "[]", '{"variant":"buffer"}', '{"variant":"carrier pigeon","LX":1}',
        '{"variant":"buffer","LX":"one","V":[1]}', "CHANGE 0", "CHANGE -1", "CHANGE 4096",
        "CHANGE 3", "CHANGE x",
    ],
)  # fmt: skip
def test_rows_that_make_no_sense_are_no_rows(tuned: Path, config: str, another: bool) -> None:
    """Whatever the file says: the start goes on, with the safe default in its place."""
    with clk_engine.engine(cache=tuned) as engine:
        expected = ask(engine)

    def spoil(text: str) -> str:
        if not config.startswith("CHANGE"):
            return config
        value = config.split()[1]
        own = json.loads(text)
        changed = {k: int(value) if value != "x" else value for k in own if k != "variant"}
        return json.dumps({**own, **changed})

    rows = under_another_driver(tuned, drop=not another)
    with Store.open(tuned) as store:
        clk_engine.plant(store, [replace(row, config=spoil(row.config)) for row in rows])
    warnings = Warnings()
    with clk_engine.engine(cache=tuned, warn=warnings.append) as engine:
        answer = ask(engine)
        chosen = set(origins(engine.runner.planner.choices))
    # Most of the parameters are no numbers like these; argmax has none, and stays as it is.
    assert "default" in chosen
    assert answer == expected
    assert len(warnings) == 1


def under_another_driver(cache: Path, *, drop: bool = False) -> list[BestRow]:
    """Move the choices in a cache file to another driver's key, or with ``drop`` back to none."""
    with Store.open(cache) as store:
        rows = store.best_rows()
        drivers = store.drivers()
        store.clear(binaries_only=False)
        for driver in drivers:
            store.put_driver(driver)
        if drop:
            return rows
        moved = [replace(row, driver="0" * 32) for row in rows]
        clk_engine.plant(store, moved)
        return moved


# -- kinds of memory -------------------------------------------------------------------------------


def kinds(engine: Engine) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for workload, choice in engine.runner.planner.choices.items():
        found.setdefault(workload.op, set()).add(choice.config.variant)
    return found


@pytest.mark.parametrize(
    ("variant", "images"),
    [
        (["buffer"], set()),
        (["image"], set(SPECS)),
        (["gemv=image"], {"gemv", "gemm", "embedding"}),
        (["gemm=image"], {"gemv", "gemm", "embedding"}),
        (["image", "embedding=buffer"], set(SPECS) - {"gemv", "gemm", "embedding"}),
    ],
)
def test_forced_variants_run(variant: list[str], images: set[str]) -> None:
    with clk_engine.engine() as engine:
        expected = ask(engine)
    with clk_engine.engine(variant=variant) as forced:
        answer = ask(forced)
        for op, found in kinds(forced).items():
            assert found == {"image" if op in images else "buffer"}, op
        assert not [line for line in forced.fallbacks() if "image" in line.partition("{")[0]]
    assert answer == expected


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "what"), [("1K", "weight"), ("100K", "weight"), ("250K", "KV cache")]
)
def test_what_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch, budget: str, what: str
) -> None:
    monkeypatch.setenv("CLKILN_MEMORY_BUDGET", budget)
    with pytest.raises(OutOfDeviceMemory, match=rf"^{what} .* does not fit"), clk_engine.engine():
        pass


def test_an_engine_survives_what_did_not_fit() -> None:
    """Caches that can't all grow end that prompt, not the ones after it."""
    with clk_engine.engine() as engine:
        runner, memory = engine.runner, engine.runner.context.memory
        prompt, long = clk_engine.prompt(20, 515), clk_engine.prompt(600, 515)
        runner.feed(prompt)
        expected, limit, refused = runner.logits(), memory.limit, 0
        for _ in range(50):
            runner.reset()
            memory.limit = memory.used + 150_000
            try:
                runner.feed(long)
            except OutOfDeviceMemory:
                refused += 1
            memory.limit = limit
            runner.reset()
            runner.feed(prompt)
            assert (runner.logits() == expected).all()
        assert refused


def test_the_budget_counts_what_is_held() -> None:
    """Whatever was replaced while caches and activations grew has been given back."""
    with clk_engine.engine() as engine:
        engine.runner.feed(clk_engine.prompt(10, 515))
        engine.runner.feed(clk_engine.prompt(600, 515))
        planner, memory = engine.runner.planner, engine.runner.context.memory
        held = [*planner.tensors.values(), *planner.resident._parts.values()]
        assert memory.used == sum(tensor.nbytes for tensor in held)


# -- limits of compiled kernels --------------------------------------------------------------------


def test_defaults_shrink_to_what_compiled_kernels_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose groups may have too few registers for a kernel."""
    device = clk_engine.a_device()
    like_a_gpu = replace(device, info=replace(device.info, type="gpu"))

    def logits(engine: Engine) -> np.ndarray:
        for token in (5, 7, 9):
            engine.runner.feed([token])
        return engine.runner.logits()

    with clk_engine.engine() as engine:
        expected = logits(engine)
    monkeypatch.setattr(Program, "work_group_limit", lambda self: 8)
    with clk_engine.engine(device=like_a_gpu) as engine:
        sizes = [
            math.prod(SPECS[workload.op].geometry(workload, choice.config).local_size)
            for workload, choice in engine.runner.planner.choices.items()
        ]
        assert max(sizes) > 8  # those for prompts are not compiled yet
        assert clk_engine.relative_error(logits(engine), expected) < 1e-4
        launches = engine.runner.planner._launches.values()
        assert max(math.prod(step.launch.geometry.local_size) for step in launches) == 8
        # What is shown is what runs.
        shown = " ".join(engine.fallbacks())
        assert all(
            f"{step.workload}: not tuned, safe default {step.config}" in shown for step in launches
        )


def test_a_default_that_cannot_shrink_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Program, "work_group_limit", lambda self: 0)
    with (
        pytest.raises(UnsupportedOperation, match=r": \w+ .*: compiled kernel: work-group 1 > 0"),
        clk_engine.engine(),
    ):
        pass
