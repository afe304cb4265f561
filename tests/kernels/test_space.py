"""Listing a space by kept checks gives what checking each configuration gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clk_cases import TINY
from clk_run import Limits
from clkiln.kernels import SPECS, space
from clkiln.kernels.capability import Capabilities
from clkiln.kernels.feasible import CHECKS, Infeasible
from clkiln.kernels.space import Space
from clkiln.kernels.types import Config, DeviceLimits, Workload

IMAGES = frozenset({"images", "image_buffers"})
PLENTY = Limits("gpu", 8, 48 << 10, 256, (256, 256, 64), 1 << 30, 4096, 4096, IMAGES, 1 << 20)
#: Devices on which each check fails for some configurations and not for others.
LIMITS = {
    "plenty": PLENTY,
    "cpu": replace(PLENTY, type="cpu"),
    "little local memory": replace(PLENTY, local_memory=6000),
    "32 items": replace(PLENTY, max_work_group_size=32),
    "flat": replace(PLENTY, max_work_item_sizes=(256, 4, 1)),
    "small allocations": replace(PLENTY, max_alloc=3000),
    "small images": replace(PLENTY, image2d_max_width=40, image_max_buffer_size=300),
    "no images": replace(PLENTY, features=frozenset()),
}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("op", SPECS)
def test_as_each_configuration_on_its_own(op: str, name: str) -> None:
    spec, limits = SPECS[op], LIMITS[name]
    for workload in map(Workload.parse, (spec.example, *TINY[op][:2])):
        every = list(spec.space(workload))
        some = every[:: max(1, len(every) // 101)]
        alone = [config for config in some if spec.check(workload, config, limits) is None]
        found = spec.feasible(workload, limits)
        looked = set(some)
        assert [config for config in found if config in looked] == alone


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("op", ["gemm", "gemv", "embedding", "conv2d"])
def test_one_layout_of_a_weight(op: str, name: str) -> None:
    spec, limits = SPECS[op], LIMITS[name]
    workload = Workload.parse(TINY[op][0])
    for variant in spec.variants:
        every = list(Space(spec, workload, variant, limits).feasible())
        for layout in {spec.layout(workload, config) for config in every}:
            walked = Space(spec, workload, variant, limits, layout)
            alike = [config for config in every if spec.layout(workload, config) == layout]
            assert list(walked.feasible()) == alike
            assert walked.find() == alike[0]
        assert isinstance(Space(spec, workload, variant, limits, "none").find(), Infeasible)


@pytest.mark.parametrize("op", ["gemm", "gemv"])
def test_a_check_is_done_once_for_what_it_reads(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    done: list[Config] = []

    def counted(check):  # type: ignore[no-untyped-def]
        return lambda *args: done.append(args[2]) or check(*args)

    monkeypatch.setattr(space, "CHECKS", tuple(map(counted, CHECKS)))
    workload = Workload.parse(SPECS[op].example)
    whole = len(list(SPECS[op].space(workload)))
    assert not isinstance(Capabilities(Limits(max_alloc=100)).find(workload), Config)
    assert 0 < len(done) < whole // 4
    done.clear()
    assert len(SPECS[op].feasible(workload, PLENTY)) < whole
    assert 0 < len(done) < whole
    done.clear()
    # A feature that is missing needs one look; what a CPU never does needs one more.
    one_look = Capabilities(Limits("cpu"))
    for variant in SPECS[op].variants:
        if variant.name in ("image", "tiled"):
            assert isinstance(one_look.find_variant(workload, variant), Infeasible)
    assert len(done) == sum({"image": 1, "tiled": 2}.get(v.name, 0) for v in SPECS[op].variants)


def test_what_holds_for_all_of_a_space_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that no allocation holds is found out by a look, and not by one at each of it."""
    looks: list[object] = []
    answer = space._Kept._answer
    counted = lambda self, values: looks.append(values) or answer(self, values)  # noqa: E731
    monkeypatch.setattr(space._Kept, "_answer", counted)
    workload = Workload.parse(SPECS["attention_prefill"].example).replace(ctx=1 << 20)
    small = replace(PLENTY, max_alloc=1 << 20)
    found = Capabilities(small).find(workload)
    assert isinstance(found, Infeasible) and "k_cache" in found.reason
    assert SPECS[workload.op].feasible(workload, small) == []
    assert 0 < len(looks) < 100


class Choosy(SPECS["add"].__class__):  # type: ignore[misc, name-defined]
    """Its constraint compares configurations, and looks them up."""

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        every = list(self.space(workload))
        if config == every[3]:
            return "one"
        return "another" if config in {every[5]} else None


def test_a_constraint_may_compare_configurations() -> None:
    spec, workload = Choosy(), Workload.parse(TINY["add"][0])
    alone = [c for c in spec.space(workload) if spec.check(workload, c, PLENTY) is None]
    assert spec.feasible(workload, PLENTY) == alone
    assert len(alone) <= len(list(spec.space(workload))) - 2
