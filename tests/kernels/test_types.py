"""Canonical texts, digests, and the check that keeps impossible configurations from a device."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_cases import TINY, is_for
from clk_run import Limits
from clkiln.kernels import OPERATIONS, SPECS
from clkiln.kernels.gemv.spec import GemvSpec
from clkiln.kernels.source import Source, read_source
from clkiln.kernels.types import Argument, Config, Geometry, Workload

quick = settings(max_examples=100, deadline=None, derandomize=True)
names = st.from_regex(r"[a-z][a-z0-9_]{0,7}", fullmatch=True)
#: Texts that a dtype or a flag may be: anything without a space that does not read as a number.
tags = st.from_regex(r"[a-z][a-z0-9_.=\-]{0,7}", fullmatch=True)
values = st.integers(-(10**12), 10**12) | tags


@quick
@given(names, st.dictionaries(names, values, max_size=6))
def test_workload_text_comes_back(op: str, items: dict[str, int | str]) -> None:
    workload = Workload(op, tuple(sorted(items.items())))
    assert Workload.parse(str(workload)) == workload


@quick
@given(st.text("gemv =0123456789-ab\n", max_size=24))
def test_only_canonical_workloads_are_read(text: str) -> None:
    try:
        workload = Workload.parse(text)
    except ValueError:
        return
    assert str(workload) == text


@quick
@given(st.text(max_size=9), st.dictionaries(st.text(max_size=5), st.integers() | st.text()))
def test_config_text_comes_back(variant: str, params: dict[str, int | str]) -> None:
    config = Config(variant, tuple(sorted((k, v) for k, v in params.items() if k != "variant")))
    assert Config.parse(str(config)) == config
    assert str(Config.parse(str(config))) == str(config)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "1", "null", "{}", '{"variant":1}']
    + [f'{{"variant":"a","b":{value}}}' for value in ("1.5", "true", "null", "[1]")],
)
def test_other_texts_are_no_config(text: str) -> None:
    with pytest.raises(ValueError):
        Config.parse(text)


@quick
@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 300)), min_size=1, max_size=3))
def test_geometry_covers_with_less_than_a_group_to_spare(pairs: list[tuple[int, int]]) -> None:
    items, local = tuple(n for n, _ in pairs), tuple(size for _, size in pairs)
    geometry = Geometry.cover(items, local)
    assert geometry.local_size == local
    for total, size, n in zip(geometry.global_size, local, items, strict=True):
        assert total % size == 0 and n <= total < n + size


# --- limits -----------------------------------------------------------------------------------

LIMITS = {
    "64 items": Limits("gpu", 4, 32 << 10, 64, (64, 64, 64)),
    "one item": Limits("gpu", 1, 32 << 10, 1, (1, 1, 1)),
    "one item each way": Limits("cpu", 1, 32 << 10, 64, (1, 1, 1)),
    "narrow images": Limits(
        "gpu", 8, 32 << 10, 256, (256, 256, 64), 128 << 20, 4096, 4096, frozenset({"images"})
    ),
    "low images": Limits(
        "cpu", 8, 32 << 10, 256, (256, 256, 64), 128 << 20, 8192, 3, frozenset({"images"})
    ),
    "little memory": Limits("cpu", 2, 32 << 10, 4096, (4096,) * 3, 300_000),
    "hardly any local memory": Limits("gpu", 2, 128, 256, (256,) * 3),
}


def random_workload(op: str, rng: np.random.Generator) -> Workload:
    """One of the tiny workloads with other sizes where sizes are free."""
    workload = Workload.parse(str(rng.choice(TINY[op])))
    if op in ("gemv", "gemm", "embedding"):
        step = 1 if workload.tag("w") in ("f32", "f16") else 32
        workload = workload.replace(
            n=int(rng.integers(1, 900)), k=step * int(rng.integers(1, 1200 // step))
        )
    if op in ("gemm", "embedding", "rmsnorm", "add", "softmax"):
        workload = workload.replace(m=int(rng.integers(1, 40)))
    return workload


@cache
def space(workload: Workload) -> list[Config]:
    return list(SPECS[workload.op].space(workload))


@pytest.mark.parametrize("device", LIMITS)
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("seed", range(2))
def test_feasible_configurations_respect_every_limit(op: str, device: str, seed: int) -> None:
    """Worked out again from geometry and arguments, for a sample of the feasible set."""
    rng, limits, spec = np.random.default_rng(seed), LIMITS[device], SPECS[op]
    workload = random_workload(op, rng)
    candidates = [space(workload)[i] for i in rng.permutation(len(space(workload)))[:400]]
    feasible = [c for c in candidates if spec.check(workload, c, limits) is None]
    for config in feasible:
        geometry = spec.geometry(workload, config)
        assert np.prod(geometry.local_size) <= limits.max_work_group_size
        assert all(
            size <= most
            for size, most in zip(geometry.local_size, limits.max_work_item_sizes, strict=False)
        )
        assert all(
            total % size == 0 and total > 0
            for total, size in zip(geometry.global_size, geometry.local_size, strict=True)
        )
        assert spec.local_memory(workload, config) <= limits.local_memory
        for argument in spec.arguments(workload, config):
            assert argument.nbytes <= limits.max_alloc
            if argument.memory == "image2d":
                assert "images" in limits.features
                assert argument.shape[0] <= limits.image2d_max_height
                assert argument.shape[1] <= limits.image2d_max_width
    for config in candidates[:40]:
        broken = spec.check(workload, config, limits)
        assert broken is None or broken.reason


@pytest.mark.parametrize("device", LIMITS)
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_safe_is_in_the_space_and_feasible(op: str, device: str, seed: int) -> None:
    """Wherever anything is; and what the search starts with comes from the space, too."""
    rng, limits, spec = np.random.default_rng(seed), LIMITS[device], SPECS[op]
    workload = random_workload(op, rng)
    safe = spec.safe(workload, limits)
    assert safe in space(workload)
    assert set(spec.starts(workload, limits)) <= set(space(workload))
    if any(a.nbytes > limits.max_alloc for a in spec.arguments(workload, safe)):
        return  # the workload itself does not fit
    staged = workload.op == "gemv" and "norm" in dict(workload.items)
    if staged and 4 * workload.size("k") > limits.local_memory:
        return  # nor does the vector that a work-group holds
    if op == "to_image" and workload.size("m") > limits.image2d_max_height:
        return  # nor do the rows that are to become an image
    assert (spec.check(workload, safe, limits) is None) == is_for(spec, limits)


@pytest.mark.parametrize("device", ["64 items", "one item", "narrow images"])
@pytest.mark.parametrize("op", ["gemv", "gemm", "embedding"])
def test_safe_takes_any_feasible_layout(op: str, device: str) -> None:
    limits, spec = LIMITS[device], SPECS[op]
    for text in TINY[op]:
        workload = Workload.parse(text)
        for layout in {spec.layout(workload, c) for c in spec.feasible(workload, limits)}:
            config = spec.safe(workload, limits, layout)
            assert spec.layout(workload, config) == layout
            assert spec.check(workload, config, limits) is None


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_operation_has_a_space(op: str) -> None:
    """More than one configuration, and none of them twice."""
    for text in TINY[op]:
        workload = Workload.parse(text)
        configs = space(workload)
        assert 1 < len(configs) == len(set(configs))
        for kind in {v.kind for v in SPECS[op].variants}:
            assert set(SPECS[op].space(workload, kind)) == {
                c for c in configs if SPECS[op].variant(c.variant).kind == kind
            }


def test_features_keep_a_variant_away() -> None:
    workload = Workload.parse(TINY["gemv"][0])
    with_images = LIMITS["narrow images"]
    kinds = {c.variant for c in SPECS["gemv"].feasible(workload, with_images)}
    assert kinds == {"buffer", "image"}
    assert {c.variant for c in SPECS["gemv"].feasible(workload, LIMITS["64 items"])} == {"buffer"}


def test_a_wide_image_is_not_feasible_on_a_narrow_device() -> None:
    workload = Workload.of("gemv", bias="no", fuse="none", k=576, n=960, w="q4_1")
    widths = {
        config["IW"]
        for config in SPECS["gemv"].feasible(workload, LIMITS["narrow images"], "image")
    }
    assert widths == {2048, 4096}


# --- digests ----------------------------------------------------------------------------------


def test_digest_follows_version_and_source(tmp_path: Path) -> None:
    class Newer(GemvSpec):
        version = GemvSpec.version + 1

    path = tmp_path / "gemv.cl"
    path.write_text(read_source(GemvSpec.file) + "\n")

    class Edited(GemvSpec):
        file = str(path)

    digests = [spec().digest() for spec in (GemvSpec, Newer, Edited)]
    assert len(set(digests)) == 3
    assert GemvSpec().digest() == digests[0] == SPECS["gemv"].digest()


def test_digests_of_operations_differ() -> None:
    assert len({spec.digest() for spec in SPECS.values()}) == len(SPECS)


def test_includes_are_part_of_the_source() -> None:
    assert "#include" not in read_source("gemv/gemv.cl")
    assert "WEIGHT_ARGS" in read_source("gemv/gemv.cl")


def test_source_digest_follows_every_part() -> None:
    sources = [
        Source("a", "b", ("c", "d")),
        Source("a ", "b", ("c", "d")),
        Source("a", "b ", ("c", "d")),
        Source("a", "b", ("d", "c")),
        Source("a", "b", ("c",)),
        Source("a", "b", ("cd",)),
    ]
    assert len({source.digest for source in sources}) == len(sources)


def test_argument_counts_bytes() -> None:
    assert Argument("x", "input", "float16", (3, 5, 4), "image2d").nbytes == 120
    assert Argument("x", "input", "float32", (1 << 20, 1 << 20)).nbytes == 1 << 42
