"""The standard set of shapes: true to the models it comes from, runnable, and worth its time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import prod

import pytest

from clk_run import Limits
from clkiln.inference import standard
from clkiln.inference.config import tensor_shapes
from clkiln.inference.families import FAMILIES, MIXES, Tensors
from clkiln.inference.standard import family_uses, standard_uses, trial_seconds
from clkiln.inference.weights import Weights
from clkiln.kernels import SPECS
from clkiln.kernels.coding import coding_of
from clkiln.kernels.near import distance
from clkiln.kernels.types import Workload
from clkiln.kernels.uses import Use

LIMITS = Limits(
    "gpu",
    16,
    48 << 10,
    1024,
    (1024, 1024, 64),
    1 << 30,
    16384,
    16384,
    frozenset({"images", "image_buffers"}),
)
MUCH = 1 << 40

#: Numbers of parameters as published, tied heads counted once.
PARAMETERS = {
    "SmolLM2-135M": 134_515_008, "SmolLM2-360M": 361_821_120, "SmolLM2-1.7B": 1_711_376_384,
    "Qwen2.5-0.5B": 494_032_768, "Qwen2.5-1.5B": 1_543_714_304, "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512, "Qwen3-0.6B": 596_049_920, "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096, "Llama-3.2-1B": 1_235_814_400, "Llama-3.2-3B": 3_212_749_824,
    "Llama-3-8B": 8_030_261_248,
}  # fmt: skip


@cache
def chosen(seconds: float | None, memory: int = MUCH, ops: tuple[str, ...] = ()) -> list[Use]:
    return standard_uses(LIMITS, memory, "f32", seconds=seconds, ops=ops)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_families_are_the_published_models(family: standard.Family) -> None:
    shapes = tensor_shapes(family.config())
    assert sum(prod(shape) for _, shape in shapes) == PARAMETERS[family.name]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.name)
def test_codings_fit_their_columns(mix: standard.Mix) -> None:
    """Blocks of 256 columns only where they divide; a file's norms and biases are floats."""
    for family in FAMILIES:
        config = family.config()
        for name, info in Tensors(config, mix).tensors.items():
            assert (info.dtype == "f32") == (len(info.shape) == 1), name
            if info.dtype.endswith("_k"):
                assert info.shape[1] % 256 == 0, name
        found = Tensors(config, mix)
        weights = Weights(found, config)
        assert weights.dtype("blk.0.ffn_down") == found.tensors["blk.0.ffn_down.weight"].dtype


def test_a_coding_without_kernels_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard, "DTYPES", ("f32", "q8_0"))
    found = standard_uses(LIMITS, MUCH, "f32", seconds=100)
    assert {use.workload.tag("w", "q8_0") for use in found} <= {"f32", "q8_0"}
    monkeypatch.setattr(standard, "DTYPES", ("f32",))
    assert standard_uses(LIMITS, MUCH, "f32", seconds=100) == []


@pytest.mark.parametrize("seconds", [0.1, 10.0, 34.0, 225.0])
def test_the_set_is_sound_and_takes_its_time(seconds: float) -> None:
    found = chosen(seconds)
    workloads = [use.workload for use in found]
    assert len(workloads) == len({*workloads}) > 0
    taken = standard.TRIALS * sum(map(trial_seconds, workloads))
    assert taken <= seconds or len(chosen(seconds)) <= 3
    known = {w for family in FAMILIES for mix in MIXES for w in of(family.name, mix.name)}
    assert {*workloads} <= known
    for use in found:
        spec = SPECS[use.workload.op]
        assert spec.check(use.workload, spec.safe(use.workload, LIMITS), LIMITS) is None
        assert use.steps > 0
        coding_of(use.workload.tag("w", "f32"))  # raises for what there are no kernels for
    # All that read one weight are there, and in one group.
    groups: dict[str | None, dict[str, set[tuple[object, ...]]]] = {}
    for use in found:
        if use.workload.op in ("gemv", "gemm"):
            shape = tuple(use.workload.size(n) for n in "nk"), use.workload.tag("w")
            groups.setdefault(use.group, {}).setdefault(use.workload.op, set()).add(shape)
    assert None not in groups
    for ops in groups.values():
        assert len(ops["gemv"]) == 1
        assert ops.get("gemm", ops["gemv"]) == ops["gemv"]


@cache
def of(family: str, mix: str) -> dict[Workload, float]:
    """The workloads of a model and their shares of a typical request."""
    one = next(f for f in FAMILIES if f.name == family)
    found = family_uses(one, next(m for m in MIXES if m.name == mix), "f32", None)
    costs = {use.workload: use.cost(standard._least(use.workload)) for use in found}
    return {workload: cost / sum(costs.values()) for workload, cost in costs.items()}


def gap(family: str, mix: str, uses: list[Use]) -> float:
    """Mean distance of a model's workloads to the nearest of the set, weighted by their time."""
    return sum(
        share * min([standard.UNRELATED, *(distance(workload, use.workload) for use in uses)])
        for workload, share in of(family, mix).items()
    )


def test_more_time_brings_every_model_nearer() -> None:
    """In every coding, the rarer ones included; smaller models more than larger ones."""
    mixes = [mix.name for mix in MIXES if of("SmolLM2-135M", mix.name)]
    fast, normal = chosen(34.0), chosen(225.0)
    for family in FAMILIES:
        for mix in mixes:
            if of(family.name, mix):
                near = gap(family.name, mix, normal)
                assert near < gap(family.name, mix, fast) < 0.75 * standard.UNRELATED
                assert near < (2.5 if PARAMETERS[family.name] < 4.1e9 else 4.0)


def test_shares_are_of_all_that_a_unit_stands_for() -> None:
    """However few are chosen, together they stand for nearly all of a typical request."""
    everything = sum(use.cost(standard._least(use.workload)) for use in chosen(1e5))
    for seconds in (34.0, 225.0):
        part = sum(use.cost(standard._least(use.workload)) for use in chosen(seconds))
        assert 0.9 * everything < part < 1.01 * everything


def test_models_that_do_not_fit_are_left_out() -> None:
    largest = max(use.workload.size("k") for use in chosen(225.0) if use.workload.op == "gemv")
    small = chosen(225.0, memory=200 << 20)
    assert 0 < max(use.workload.size("k") for use in small if use.workload.op == "gemv") < largest
    assert chosen(225.0, memory=1 << 20) == []
    tight = replace(LIMITS, max_alloc=32 << 20)
    for use in standard_uses(tight, MUCH, "f32", seconds=60):
        spec = SPECS[use.workload.op]
        assert spec.check(use.workload, spec.safe(use.workload, tight), tight) is None


def test_only_some_operations() -> None:
    found = chosen(30.0, ops=("argmax", "rope"))
    assert {use.workload.op for use in found} == {"argmax", "rope"}
    assert standard.standard_operations("f32") == sorted({use.workload.op for use in chosen(1e5)})
