"""Tuning as a library call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import clk_engine
import clkiln
from clk_tuning import with_roofs
from clkiln.api import TuningJob
from clkiln.cache.store import Store
from clkiln.errors import ModelError, UsageError
from clkiln.kernels.types import Workload
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
