"""Tuning as a library call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import clk_engine
import clkiln
from clk_tuning import with_roofs
from clkiln.api import STANDARD, TuningJob
from clkiln.cache.store import Store
from clkiln.errors import ModelError, UsageError
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.tuner.record import done_fact
from clkiln.tuner.session import Progress


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache file that knows its device's roofs, so that no run measures them."""
    path = tmp_path / "cache.sqlite"
    with Store.open(path) as store:
        with_roofs(store, clk_engine.a_device().info.driver_key)
    return path


def test_tune_searches_and_keeps(cache: Path) -> None:
    """One small kernel and a second of time: figures, file and the next call agree."""
    seen, warnings = list[Progress](), list[str]()
    options: dict[str, Any] = {"kernels": ["argmax"], "level": "fast", "warn": warnings.append}
    model, device = clk_engine.small_model(), clk_engine.a_device()
    first = clkiln.tune(model, device, cache, progress=seen.append, budget=1.0, **options)
    assert isinstance(first, clkiln.TuneSummary)
    assert not first.already_done
    assert (first.kernels, first.trials) == (1, sum(first.by_status.values()))
    assert first.trials == seen[-1].trials == len(seen) > 0
    assert 0 < first.seconds < 20
    rates = (first.decode_before, first.decode_after, first.prefill_before, first.prefill_after)
    assert all(rate is not None and rate > 0 for rate in rates)
    assert first.as_dict()["cache_file"] == str(cache)
    with Store.open(cache) as store:
        assert [row.model for row in store.runs()] == [first.model]
        [best] = store.best_rows()
        assert len(store.trials()) == first.trials
        # The budget cut it short; as if it had not:
        name = done_fact("", Workload.parse(best.workload), best.digest)
        store.set_fact(name, "fast", driver=best.driver)
    second = clkiln.tune(model, device, cache, **options)
    assert second.already_done
    assert (second.kernels, second.trials) == (1, 0)
    assert "seconds" not in second.as_dict()
    assert warnings == []


def test_tune_without_a_model(cache: Path) -> None:
    """A model that nobody tuned then borrows, and answers as it did."""
    device = clk_engine.a_device()
    options: dict[str, Any] = {"kernels": ["rmsnorm"], "budget": 2.0, "level": "fast"}
    done = clkiln.tune(None, device, cache, **options)
    assert (done.model, done.already_done) == (STANDARD, False)
    assert done.kernels >= 1
    assert (done.decode_before, done.decode_after) == (None, None)
    assert done.speedup is not None and done.speedup >= 1
    with Store.open(cache, write=False) as store:
        rows = {Workload.parse(row.workload): row for row in store.best_rows()}
        assert [row.model for row in store.runs()] == [STANDARD]
    assert {workload.op for workload in rows} == {"rmsnorm"}
    with clk_engine.engine() as plain:
        expected = plain.generate("Hello", temperature=0, max_tokens=4).token_ids
    # What was quickest on this machine may be the default, and then there is nothing to borrow.
    odd = Config.of("buffer", LX=2, V=2)
    with Store.open(cache) as store:
        for other, row in rows.items():
            assert SPECS["rmsnorm"].contains(other, odd)
            store.set_best(replace(row, config=str(odd)))
    with clk_engine.engine(cache=cache) as engine:
        assert engine.generate("Hello", temperature=0, max_tokens=4).token_ids == expected
        choices = engine.runner.planner.choices
        borrowed = [choice for choice in choices.values() if choice.origin == "similar"]
        assert borrowed
        assert {(choice.workload.op, choice.config) for choice in borrowed} == {("rmsnorm", odd)}
        assert all(choice.tuned_for in rows for choice in borrowed)


def test_a_preview_without_a_model(cache_dir: Path) -> None:
    device = clk_engine.a_device()
    with TuningJob(device=device, budget="10s", kernels=["rmsnorm", "argmax"]) as job:
        preview = job.preview()
        assert {row["workload"] for row in preview["workloads"]} == {
            str(use.workload) for use in job.uses
        }
        assert preview["feasible"] > 0
    assert list(cache_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"kernels": ["cook"]}, "no kernel 'cook' in the standard shapes; it has argmax"),
        ({"quantize": "q4_0"}, "quantize='q4_0' needs a model"),
        ({"level": "low"}, "level 'low'"),
    ],
)
def test_arguments_that_mean_nothing_without_a_model(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        clkiln.tune(device=clk_engine.a_device(), **options)


def test_no_shape_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLKILN_MEMORY_BUDGET", "1M")
    with pytest.raises(UsageError, match="no standard shape fits"):
        clkiln.tune(device=clk_engine.a_device())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"level": "low"}, "level 'low': fast, normal"),
        ({"budget": 0}, "budget 0"),
        ({"budget": float("nan")}, "budget nan"),
        ({"budget": "soon"}, "budget 'soon'"),
        ({"kernels": ["cook"]}, "no kernel 'cook' in this model; it has argmax"),
        ({"variant": ["tape"]}, "variant 'tape'"),
    ],
)
def test_arguments_that_mean_nothing(options: dict[str, Any], what: str, cache_dir: Path) -> None:
    with pytest.raises(UsageError, match=what):
        clkiln.tune(clk_engine.small_model(), clk_engine.a_device(), **options)
    assert list(cache_dir.iterdir()) == []


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(ModelError):
        clkiln.tune("no/such/model.gguf", clk_engine.a_device())


def test_a_preview_opens_no_cache_file(tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    with TuningJob(clk_engine.small_model(), clk_engine.a_device(), cache, budget="7s") as job:
        preview = job.preview()
        assert preview["estimated_s"] == 7
        assert len(preview["workloads"]) == len(job.wanted)
    assert not cache.exists()


def test_what_no_image_can_hold_is_tuned_in_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    device = clk_engine.a_device()
    small = replace(device, info=replace(device.info, image_max_buffer_size=128))
    monkeypatch.setattr("clkiln.api.job.choose_device", lambda *_: (small, ""))
    warnings: list[str] = []
    with TuningJob(clk_engine.small_model(), variant=["image"], warn=warnings.append) as job:
        assert all(row["feasible"] for row in job.preview()["workloads"])
    [warning] = warnings
    assert warning.startswith("not as asked: ")
    assert "attention_decode: can't run as image here: k_cache image buffer " in warning
    assert "gemv" not in warning


def test_contexts_that_a_device_cannot_run_are_not_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine ends before them, and the rest of the model can be tuned."""
    model = clk_engine.variation(tmp_path / "long.gguf", context=4096)
    device = clk_engine.a_device()
    # A cache row takes 128 bytes, and no other tensor is as large.
    small = replace(device, info=replace(device.info, max_alloc=170_000))
    contexts: dict[bool, set[object]] = {}
    for limited in (False, True):
        chosen = small if limited else device
        monkeypatch.setattr("clkiln.api.job.choose_device", lambda *_, chosen=chosen: (chosen, ""))
        with TuningJob(model, cache=tmp_path / "cache.sqlite") as job:
            contexts[limited] = {dict(use.workload.items).get("ctx") for use in job.wanted}
    assert contexts[False] - contexts[True] == {2048}
    assert 512 in contexts[True]
