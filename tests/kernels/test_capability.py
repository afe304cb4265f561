"""What a device can run, against trying every configuration, over devices that are not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_cases import TINY
from clk_run import Limits
from clkiln.kernels import SPECS
from clkiln.kernels.capability import Capabilities, dtypes_of, in_dtype, needs
from clkiln.kernels.coding import DTYPES
from clkiln.kernels.spec import KernelSpec
from clkiln.kernels.types import Config, Variant, Workload

SMALL = [Workload.parse(text) for texts in TINY.values() for text in texts]
FEATURES = frozenset[str]().union(*(v.requires for s in SPECS.values() for v in s.variants))
PLENTY = Limits(
    "gpu", 4, 64 << 10, 1024, (1024, 1024, 64), 1 << 32, 1 << 16, 1 << 16, features=FEATURES,
    image_max_buffer_size=1 << 30,
)  # fmt: skip
#: From nothing to plenty, and what lies between the configurations of a small space.
limits = st.builds(
    Limits,
    type=st.sampled_from(["cpu", "gpu"]),
    compute_units=st.sampled_from([1, 2, 64, 5000]),
    local_memory=st.one_of(st.sampled_from([0, 256, 32 << 10]), st.integers(0, 8 << 10)),
    max_work_group_size=st.sampled_from([1, 3, 48, 1024]),
    max_work_item_sizes=st.sampled_from([(1, 1, 1), (64, 16, 1), (1024, 1024, 64)]),
    max_alloc=st.one_of(st.integers(0, 8 << 10), st.sampled_from([1 << 20, 128 << 20])),
    image2d_max_width=st.sampled_from([0, 2048, 8192]),
    image2d_max_height=st.sampled_from([0, 1, 8192]),
    features=st.frozensets(st.sampled_from(sorted(FEATURES))),
    image_max_buffer_size=st.sampled_from([0, 1, 100, 65536]),
)


def of_variant(spec: KernelSpec, workload: Workload, variant: Variant) -> Iterator[Config]:
    return (c for c in spec.space(workload, variant.kind) if c.variant == variant.name)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SMALL), limits)
def test_it_runs_if_any_configuration_does(workload: Workload, device: Limits) -> None:
    spec, can = SPECS[workload.op], Capabilities(device)
    for variant in spec.variants:
        found = can.find_variant(workload, variant)
        broken = {
            config: spec.check(workload, config, device)
            for config in of_variant(spec, workload, variant)
        }
        if isinstance(found, Config):
            assert broken[found] is None
        else:
            assert None not in broken.values()
            assert found in broken.values(), "the reason is none that a configuration has"
            if any(why and why.excess for why in broken.values()):
                assert found.excess > 1, "the device's limit says more than the operation's own"


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SMALL), limits, st.sampled_from([None, "buffer", "image"]))
def test_what_is_nearest_can_run(workload: Workload, device: Limits, kind: str | None) -> None:
    can, given = Capabilities(device), dict(workload.items)
    runs = isinstance(can.find(workload), Config)
    for other in can.alternatives(workload, kind):
        spec = SPECS[other.workload.op]
        assert spec.check(other.workload, other.config, device) is None
        assert spec.contains(other.workload, other.config)
        changed = dict(set(other.workload.items) - set(workload.items))
        if other.kind == "pieces":
            assert changed == {"n": other.workload.size("n"), "of": given["n"]}
            assert 0 < int(changed["n"]) < int(given["n"])
            continue
        assert set(dict(other.workload.items)) == set(given)
        if other.kind == "variant":
            assert not changed and spec.variant(other.config.variant).kind != kind
            assert other.change == f"variant {other.config.variant}"
        else:
            [(name, value)] = changed.items()
            assert other.change == f"{name}={value}"
            assert (name in spec.dtypes) == (other.kind == "dtype")
        if other.kind == "size":
            assert not runs and int(value) < int(given[name])


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([w for w in SMALL if w.op in ("gemv", "gemm", "embedding")]), limits, st.data()
)
def test_a_layout_is_kept(workload: Workload, device: Limits, data: st.DataObject) -> None:
    spec, can = SPECS[workload.op], Capabilities(device)
    configs = list(spec.space(workload))
    layout = spec.layout(workload, data.draw(st.sampled_from(configs)))
    fitting = [c for c in configs if spec.layout(workload, c) == layout]
    found = can.find(workload, layout=layout)
    if isinstance(found, Config):
        assert spec.layout(workload, found) == layout
        assert spec.check(workload, found, device) is None
    else:
        assert all(spec.check(workload, config, device) for config in fitting)


@pytest.mark.parametrize("op", SPECS)
def test_every_variant_and_dtype_is_in_the_table(op: str) -> None:
    spec = SPECS[op]
    example = Workload.parse(spec.example)
    cells = Capabilities(PLENTY).table([example])
    dtypes = [(cell.tag, cell.dtype) for cell in cells if cell.variant == spec.variants[0]]
    assert dtypes == dtypes_of(spec, example)
    assert len(cells) == len(dtypes) * len(spec.variants)
    expected = [
        (tag, d) for tag in spec.dtypes if tag in dict(example.items) for d in spec.dtypes[tag]
    ]
    assert dtypes == (expected or [("", "f32")])
    for cell in cells:
        assert cell.reason == "" and cell.nearest is None
        assert cell.config is not None and cell.config.variant == cell.variant.name
        # Blocks of columns are whole in every dtype, and nothing else has changed.
        assert cell.workload == in_dtype(example, cell.tag, cell.dtype)
        changed = dict(set(cell.workload.items) - set(example.items))
        assert changed.keys() <= {cell.tag, "k"}
        own = needs(cell.workload, cell.config)
        assert own.local_memory <= PLENTY.local_memory and own.largest <= PLENTY.max_alloc
        assert (own.image != (0, 0) or own.texels > 0) == (cell.variant.kind == "image")


def test_dtypes_are_those_that_are_declared() -> None:
    assert set(SPECS["gemv"].dtypes) == {"w", "kv"}
    assert SPECS["gemm"].dtypes["w"] == DTYPES
    assert dict(dtypes_of(SPECS["rope"], Workload.parse(SPECS["rope"].example))) == {"kv": "f32"}
    fused = next(w for w in SMALL if w.op == "gemv" and w.tag("fuse") == "qkv")
    assert {tag for tag, _ in dtypes_of(SPECS["gemv"], fused)} == {"w", "kv"}


@pytest.mark.parametrize(
    ("text", "variant", "device", "reason", "change"),
    [
        ("gemv bias=no fuse=none k=64 n=64 w=q4_0", "image", Limits(), "needs images",
         "variant buffer"),
        ("gemv bias=no fuse=none k=64 n=64 w=f32", "buffer", Limits(max_alloc=9000),
         "w.q 16384 > 9000", "pieces of 32 rows"),
        ("gemv bias=no fuse=none k=70 n=64 w=f16", "buffer", Limits(max_alloc=250),
         "w.q 8960 > 250", None),
        ("attention_decode ctx=64 head_dim=16 heads=2 kv=f32 kv_heads=2", "buffer",
         Limits(max_alloc=4096), "k_cache 8192 > 4096", "kv=f16"),
        ("attention_decode ctx=100 head_dim=16 heads=2 kv=f32 kv_heads=2", "buffer",
         Limits(max_alloc=12000), "k_cache 12800 > 12000", "ctx=93"),
        ("attention_decode ctx=100 head_dim=16 heads=2 kv=f16 kv_heads=2", "buffer",
         Limits(max_alloc=200), "qkv 384 > 200", None),
    ],
)  # fmt: skip
def test_reasons_and_what_is_nearest(
    text: str, variant: str, device: Limits, reason: str, change: str | None
) -> None:
    workload = Workload.parse(text)
    [cell] = [
        cell
        for cell in Capabilities(device).table([workload])
        if (cell.workload, cell.variant.name) == (workload, variant)
    ]
    assert reason in cell.reason and cell.config is None
    assert (cell.nearest and cell.nearest.change) == change
