"""Checks on devices that fail, files that can't be written, and models that hardly fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clk_engine
import clk_sabotage
from clk_abilities import pretending
from clk_cache import Warnings
from clk_checks import LITTLE, checked, loader
from clkiln.cache.store import Store
from clkiln.errors import CacheError, LaunchError, UnsupportedOperation
from clkiln.harness.ran import note_run
from clkiln.harness.rules import read_rules
from clkiln.inference import check as checks
from clkiln.inference.check import examine
from clkiln.inference.engine import Engine
from clkiln.inference.exam import Effort
from clkiln.inference.exam_budget import Budget
from clkiln.inference.plan import BoundStep
from clkiln.runtime.launch import Launch
from clkiln.runtime.memory import Tensor

LONG = pytest.mark.long


def bans(cache: Path) -> set[tuple[str, str]]:
    with Store.open(cache) as store:
        return {*read_rules(store, clk_engine.a_device().info.driver_key).variants}


class Failing:
    """Launches fail from a certain one on, ``times`` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: int, times: float) -> None:
        self.calls, real = 0, Launch.enqueue

        def enqueue(launch: Launch, *options: Any) -> None:
            self.calls += 1
            if start <= self.calls < start + times:
                raise LaunchError("out of resources")
            real(launch, *options)

        monkeypatch.setattr(Launch, "enqueue", enqueue)


# -- devices ---------------------------------------------------------------------------------------


def test_a_launch_that_fails_once_is_no_kernels_fault(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Failing(monkeypatch, 12, 1)
    result = checked(cache)
    assert result.ok and not result.banned and not result.faults
    assert [note for note in result.notes if note.startswith("failed once and not again: ")]
    assert bans(cache) == set()


def test_a_device_that_is_gone_blames_no_kernel(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every launch fails, the context can't be left in order, and no new one is made."""
    load = loader(cache)
    engine = load()
    Failing(monkeypatch, 12, float("inf"))

    def lost() -> Engine:
        raise LaunchError("the device is lost")

    monkeypatch.setattr(engine.runner.context, "close", lost)
    result, left = examine(engine, lost, LITTLE)
    assert left is None and not result.banned and not result.faults
    assert "the device is lost" in result.problem
    assert bans(cache) == set()


def test_reading_that_fails_is_no_kernels_fault(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tensor: Tensor, *options: object) -> None:
        raise LaunchError("lost while reading")

    monkeypatch.setattr(Tensor, "read", refuse)
    result = checked(cache)
    assert result.problem == "the device fails: lost while reading" and result.rounds == 2
    assert bans(cache) == set()


def test_a_kernel_that_fails_each_time_is_replaced(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Launch.enqueue

    def enqueue(launch: Launch, *options: Any) -> None:
        label = launch.program.label
        if label.startswith("argmax ") and '"variant":"buffer"' in label:
            raise LaunchError("out of resources")
        real(launch, *options)

    monkeypatch.setattr(Launch, "enqueue", enqueue)
    result = checked(cache)
    assert result.ok and result.rounds == 3
    assert [each["what"] for each in result.banned] == ["argmax=buffer"]
    assert [fault.kind for fault in result.faults] == ["failed"]


def test_a_kernel_that_does_not_compile_is_replaced(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of prompts, too, which a short answer would not meet."""
    clk_sabotage.plant(
        monkeypatch, "attention_prefill", where=clk_sabotage.variant("buffer"),
        behind="\n  this is no code;\n",
    )  # fmt: skip
    result = checked(cache)
    assert result.ok and [each["what"] for each in result.banned] == ["attention_prefill=buffer"]
    assert {(fault.kind, fault.place) for fault in result.faults} == {("failed", "build")}


# -- files -----------------------------------------------------------------------------------------


def full(*_: object) -> None:
    raise CacheError("No space left on device")


def test_a_ban_that_can_not_be_kept_is_not_claimed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clk_sabotage.plant(monkeypatch, "rmsnorm", behind="\n  y[item] += 1.0f;\n")
    monkeypatch.setattr(checks, "change_rules", full)
    result = checked(cache)
    assert (result.rounds, result.banned) == (1, []) and not result.ok
    assert "could not be banned: No space left" in result.problem


def test_after_a_new_driver_rather_no_answer_than_a_wrong_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next start says so, too."""
    with Store.open(cache) as store:
        note_run(store, "an older driver")
    monkeypatch.setattr(checks, "change_rules", full)
    with monkeypatch.context() as planted:
        clk_sabotage.plant(planted, "rmsnorm", behind="\n  y[item] += 1.0f;\n")
        with pytest.raises(UnsupportedOperation, match=r"could not be banned.*--no-check"):
            loader(cache, check=True)()
    said = Warnings()
    loader(cache, check=True, warn=said.append)().close()
    assert [line for line in said if "the latest check" in line and "No space left" in line]


def test_other_dtypes_are_other_programs(cache: Path) -> None:
    checked(cache, kv_dtype="f16")
    with Store.open(cache) as store:
        (found,) = [name for name, _ in store.facts() if name.startswith("check:")]
    checked(cache)
    with Store.open(cache) as store:
        names = {name for name, _ in store.facts() if name.startswith("check:")}
    assert len(names) == 2 and found in names


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token", [200, pytest.param(128, marks=LONG), pytest.param(255, marks=LONG)]
)
def test_tokens_far_into_a_chunk_are_compared(
    cache: Path, monkeypatch: pytest.MonkeyPatch, token: int
) -> None:
    """Of a product of many tokens one in nine is."""
    store = "store_group(g, acc[i * P + P - 1][t], acc[i * P][t], BIAS_VALUE to);"
    clk_sabotage.plant(
        monkeypatch, "gemm", where=clk_sabotage.variant("buffer"),
        instead=(store, f"{store} if ((first + t) / 9 == {token // 9} && g == 0) to[0] += 9.0f;"),
    )  # fmt: skip
    result = checked(cache, Effort(1, (256,), 1e9, random=False, whole=False))
    assert result.ok and [each["what"] for each in result.banned] == ["gemm=buffer"]
    assert "worst at [" in result.faults[0].message


def test_a_context_that_was_shortened_is_checked_as_far_as_it_goes(cache: Path) -> None:
    small = pretending(image_max_buffer_size=5000)
    load = loader(cache, device=small, variant=["attention_decode=image"])
    engine = load()
    assert 0 < engine.runner.limit < 1024 and engine.runner.shortened
    result, left = examine(engine, load, Effort(1, (5, 1), 1e9))
    assert left is not None
    left.close()
    assert result.ok and result.compared


@pytest.mark.parametrize("seconds", [0.0, 0.01, 1e9])
def test_references_keep_to_their_time(seconds: float) -> None:
    """Whatever the time: the first and the last layer in each pass, and the head once."""
    with clk_engine.engine(clk_engine.model("llama3/q8_0", 32003)) as engine:
        graph, runner = engine.runner.graph, engine.runner
        head = {step.workload for step in graph.head()}
        for fewest, passes in ((2, (23, 1, 256)), (1, (23, 1, 40))):
            budget = Budget(graph, runner.bucket, passes, seconds, fewest)
            heads = 0
            for turn, m in enumerate(passes):
                steps = [*graph.body(32 if 1 < m <= 32 else 256 if m > 1 else 1, 512)]
                runner.planner.resolve([*steps, *graph.head()])
                choices = runner.planner.choices
                nothing: Any = None
                bound = [
                    BoundStep(nothing, step.workload, choices[step.workload].config)
                    for step in (*steps, *graph.head())
                ]
                chosen = budget.chosen(bound, turn)
                heavy = [i for i in chosen if bound[i].workload.op in ("gemv", "gemm")]
                heads += any(bound[i].workload in head for i in heavy)
                body = {bound[i].workload for i in heavy} - head
                assert (
                    body == {b.workload for b in bound if b.workload.op in ("gemv", "gemm")} - head
                )
                if seconds == 1e9:
                    assert chosen == set(range(len(bound)))
            assert heads == (3 if seconds == 1e9 else 1)


def test_an_exam_needs_no_long_context(cache: Path) -> None:
    result = checked(cache, Effort(1, (23, 1, 256, 1), 1e9, random=False), ctx_size=40)
    assert result.ok and result.compared == result.launches
    assert all(np.isfinite(each.error or 0.0) for each in result.logits)
