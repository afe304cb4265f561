"""A check accuses nobody who is innocent: sound kernels of every kind of model, and hard inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clk_engine
import clk_sabotage
from clk_checks import checked, loader
from clkiln.harness.often import OUTLIER, with_outliers
from clkiln.inference.against import compare_devices
from clkiln.inference.check import examine
from clkiln.inference.exam import Effort
from clkiln.inference.launch_view import HostTensor, LaunchView
from clkiln.inference.plan import BoundStep
from clkiln.inference.step_check import Trial
from clkiln.kernels import SPECS
from clkiln.kernels.images import CONVERTED
from clkiln.kernels.types import Config, Workload

#: Every kind of step, and the chain.
EVERYTHING = Effort(2, (5, 1, 40, 1), 1e9)


@pytest.mark.long
@pytest.mark.parametrize("kv", ["f32", "f16"])
@pytest.mark.parametrize("variant", ["buffer", "image"])
@pytest.mark.parametrize("name", clk_engine.MODELS)
def test_sound_kernels(name: str, variant: str, kv: str, cache: Path) -> None:
    path = clk_engine.model(name)
    result = checked(cache, EVERYTHING, path, variant=[variant], kv_dtype=kv)
    assert result.ok and not result.faults, result.faults
    assert result.same and all(each.error < 1e-4 for each in result.logits)


def test_a_matrix_in_pieces_is_checked_piece_by_piece(tmp_path: Path) -> None:
    """And compared, step by step, with the same model in one piece."""
    model = clk_engine.variation(tmp_path / "x.gguf", vocab=9000)
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"max_alloc": 300 << 10}))
    load = loader(tmp_path / "x.sqlite", model, limits=[limits])
    result, engine = examine(load(), load, Effort(1, (5, 1), 1e9, random=False))
    assert engine is not None and result.ok and not result.faults
    assert all(each.error < 1e-5 for each in result.logits)
    pieces = [w for w in engine.runner.planner.choices if "of" in dict(w.items)]
    assert {w.op for w in pieces} == {"gemv", "embedding"}
    with clk_engine.engine(model, cache=tmp_path / "whole.sqlite") as whole, engine:
        found = compare_devices(engine, whole)
    assert found.unmatched and found.first is None and len(found.steps) > 50
    assert all(answer.same_pick for answer in found.logits)


def converting(cache: Path) -> None:
    """Let linear layers read activations from images of their own, as if that had been quickest."""
    with clk_engine.engine(cache=cache, variant=["image"]) as loaded:
        rows = clk_engine.play_tuning(loaded)
        found = []
        for row in rows:
            workload, config = Workload.parse(row.workload), Config.parse(row.config)
            if "XM" in dict(config.params):
                config = config.replace(
                    XM=CONVERTED, **({"U": 4} if "U" in dict(config.params) else {})
                )
            assert SPECS[workload.op].check(workload, config, loaded.device) is None
            found.append(replace(row, config=str(config)))
        clk_engine.plant(loaded.store, found)


@pytest.mark.long
def test_conversions_are_checked_and_what_reads_them(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converting(cache)
    result = checked(cache, Effort(2, (5, 1), 1e9))
    assert result.ok and not result.faults, result.faults
    (conversion,) = [tally for tally in result.operations if tally.op == "to_image"]
    assert conversion.compared == conversion.launches > 8 and conversion.random
    assert all(each.error < 1e-5 for each in result.logits)
    # A wrong one is named itself, and not what reads its image.
    clk_sabotage.plant(
        monkeypatch, "to_image", where=clk_sabotage.variant("image"),
        instead=("write_imagef(y, (int2)(i, row), texel)",
                 "write_imagef(y, (int2)(i, row), i == 2 ? -texel : texel)"),
    )  # fmt: skip
    result = checked(cache, Effort(2, (5, 1), 1e9, random=False))
    assert result.ok and {fault.workload.op for fault in result.faults} == {"to_image"}
    assert [each["what"] for each in result.banned] == ["to_image=image"]
    with clk_engine.engine() as plain:
        clk_engine.warm(plain)
        wanted = plain.runner.logits()
    with clk_engine.engine(cache=cache) as mended:
        clk_engine.warm(mended)
        assert clk_engine.relative_error(mended.runner.logits(), wanted) < 1e-5


# -- hard inputs -----------------------------------------------------------------------------------


class Rounding:
    """Stands for a launch of attention that computes in float32, as the best of kernels does."""

    def __init__(self, view: LaunchView, wrong: float = 0.0) -> None:
        self.view, self.wrong = view, wrong
        self.program = self.context = self
        self.launched = False

    def enqueue(self, geometry: object) -> None:
        inputs = self.view.inputs()
        rough = {n: a.astype(np.float32) for n, a in inputs.items() if n != "state"}
        q, k, v = (rough[n] for n in ("qkv", "k_cache", "v_cache"))
        workload = self.view.workload
        heads, size = workload.size("heads"), workload.size("head_dim")
        out = np.empty((heads, size), np.float32)
        for head in range(heads):
            own = q.reshape(-1)[head * size : (head + 1) * size]
            scores = (k[:, 0] @ own / np.float32(np.sqrt(size))).astype(np.float32)
            e = np.exp(scores - scores.max())
            out[head] = e @ v[:, 0] / e.sum()
        self.view.tensor("out").write(out * np.float32(1 + self.wrong))

    def finish(self) -> None:
        pass


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("wrong", [0.0, 1e-2])
def test_scores_in_the_thousands_are_no_fault_and_a_percent_is(size: float, wrong: float) -> None:
    """float32 loses bits of a softmax that hangs on them; no kernel can do better."""
    workload = Workload.parse("attention_decode ctx=128 head_dim=64 heads=2 kv=f32 kv_heads=1")
    rng = np.random.default_rng(3)
    config = SPECS[workload.op].safe(workload, clk_engine.a_device().info)
    positions, names = 90, ("qkv", "k_cache", "v_cache", "out", "state")
    arrays = {
        "qkv": size * rng.standard_normal((1, 256), dtype=np.float32),
        "k_cache": size * rng.standard_normal((256, 1, 64), dtype=np.float32),
        "v_cache": rng.standard_normal((256, 1, 64), dtype=np.float32),
        "out": np.zeros((1, 128), np.float32),
        "state": np.array([positions - 1, 1, 0, 0], np.int32),
    }
    # Two positions that nearly tie for the largest score: the answer hangs on the difference.
    arrays["k_cache"][7] = arrays["k_cache"][3] * np.float32(1 + 1e-5)
    tensors = {name: HostTensor(arrays[name]) for name in names}
    weights: Any = None
    view = LaunchView(
        workload, config, dict(zip(names, names, strict=True)), tensors, weights, positions - 1, 1
    )
    launch: Any = Rounding(view, wrong)
    seen = Trial(BoundStep(launch, workload, config), view, 2).run(True)
    assert (seen.fault is not None) == bool(wrong), seen


def test_outliers_reach_every_octave_and_leave_the_rest() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 96), (32, 64)):
        x = rng.standard_normal(shape, dtype=np.float32)
        table = np.ones(4)
        made = with_outliers({"x": x, "w": table}, rng)
        assert made["w"] is table and made["x"].dtype == x.dtype
        changed = made["x"][made["x"] != x]
        assert x.size // 16 <= changed.size <= x.size // 2
        octaves = set(np.floor(np.log2(np.abs(changed))).astype(int))
        assert octaves == set(range(-int(np.log2(OUTLIER)), int(np.log2(OUTLIER))))
    assert with_outliers({"x": np.arange(4)}, rng)["x"].tolist() == [0, 1, 2, 3]


def test_a_small_context_is_checked_as_far_as_it_goes(cache: Path) -> None:
    result = checked(cache, Effort(), ctx_size=4)
    assert result.ok and result.launches and not result.faults
    assert [each.positions for each in result.logits] == [4]


def test_an_examined_engine_answers_as_before(cache: Path) -> None:
    with clk_engine.engine() as plain:
        wanted = plain.generate("Hello", temperature=0, max_tokens=4).token_ids
    load = loader(cache)
    _, engine = examine(load(), load, Effort(1, (5, 1), 1e9, random=False))
    assert engine is not None
    with engine:
        assert engine.generate("Hello", temperature=0, max_tokens=4).token_ids == wanted
