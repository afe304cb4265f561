"""How alike workloads are: a measure that search and engine transfer parameters by."""

from __future__ import annotations

from math import inf, isfinite
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_cases import TINY
from clkiln.kernels.near import FAR, distance, nearest
from clkiln.kernels.types import Workload

quick = settings(max_examples=200, deadline=None)
#: Every operation's shape of workload, every dtype and flag.
MODELS = [Workload.parse(text) for texts in TINY.values() for text in texts]
sizes = st.integers(1, 1 << 20)
#: Values of each tag: those that occur, and codings of weights that are still to come.
TAGS: dict[str, set[str]] = {"w": {"bf16", "q6_k", "q4_k", "iq4_nl"}, "eps": {"1e-06"}}
for _name, _value in (item for workload in MODELS for item in workload.items):
    if isinstance(_value, str):
        TAGS.setdefault(_name, set()).add(_value)


@st.composite
def workloads(draw: Any, like: Workload | None = None) -> Workload:
    """A workload of any operation, or of that of ``like`` with some of its items."""
    model = like or draw(st.sampled_from(MODELS))
    changed = {
        name: draw(sizes if isinstance(value, int) else st.sampled_from(sorted(TAGS[name])))
        for name, value in model.items
        if like is None or draw(st.booleans())
    }
    return model.replace(**changed)


pairs = st.one_of(
    st.tuples(workloads(), workloads()),
    workloads().flatmap(lambda w: st.tuples(st.just(w), workloads(like=w))),
)


@quick
@given(pairs)
def test_symmetric_and_zero_only_for_equals(two: tuple[Workload, Workload]) -> None:
    a, b = two
    assert distance(a, b) == distance(b, a) >= 0
    assert (distance(a, b) == 0) == (a == b)
    assert isfinite(distance(a, b)) == (a.op == b.op)


@quick
@given(workloads(), st.data())
def test_farther_sizes_are_farther(workload: Workload, data: Any) -> None:
    """Of two changes of one size in one direction, the larger counts more."""
    names = [name for name, value in workload.items if isinstance(value, int)]
    name = data.draw(st.sampled_from(names))
    step, more = data.draw(st.tuples(st.integers(2, 64), st.integers(2, 64)))
    near = workload.replace(**{name: workload.size(name) * step})
    far = workload.replace(**{name: workload.size(name) * step * more})
    assert 0 < distance(workload, near) < distance(workload, far)


@pytest.mark.parametrize(
    ("text", "nearer", "farther"),
    [
        # A bias matters less than a factor of two, a coding of as many bits less than a wider one.
        ("gemv bias=no fuse=none k=576 n=960 w=q4_1", {"bias": "yes"}, {"n": 1920}),
        ("gemv bias=no fuse=none k=576 n=960 w=q4_1", {"w": "q4_0"}, {"w": "q8_0"}),
        ("gemv bias=no fuse=none k=576 n=960 w=q8_0", {"w": "q4_0"}, {"w": "f16"}),
        ("gemv bias=no fuse=none k=576 n=960 w=q8_0", {"fuse": "add"}, {"fuse": "swiglu"}),
        # What is fused behind a product counts less than its size, and so does a norm before it.
        (
            "gemv bias=no eps=1e-06 fuse=qkv head_dim=64 heads=9 k=576 kv=f32 kv_heads=3 n=960 "
            "norm=yes rope_dim=64 w=q4_1",
            {"heads": 11, "kv_heads": 2},
            {"n": 1920},
        ),
        # As many query heads to a key-value head go before as many heads.
        (
            "attention_decode ctx=512 head_dim=64 heads=9 kv=f32 kv_heads=3",
            {"heads": 12, "kv_heads": 4},
            {"heads": 9, "kv_heads": 9},
        ),
        (
            "attention_decode ctx=512 head_dim=64 heads=8 kv=f32 kv_heads=8",
            {"heads": 16, "kv_heads": 16},
            {"head_dim": 128},
        ),
    ],
)
def test_what_counts_more(text: str, nearer: dict[str, Any], farther: dict[str, Any]) -> None:
    workload = Workload.parse(text)
    gap = distance(workload, workload.replace(**nearer))
    assert 0 < gap < distance(workload, workload.replace(**farther)) < FAR


@pytest.mark.parametrize("size", [0, -3])
def test_sizes_that_are_none_are_near_nothing(size: int) -> None:
    workload = Workload.of("add", d=64, m=1)
    assert distance(workload, workload.replace(d=size)) == inf


@quick
@given(workloads(), st.integers(0, 5), st.data())
def test_nearest_first_and_nothing_far(workload: Workload, count: int, data: Any) -> None:
    others = [data.draw(workloads(like=workload)) for _ in range(count)]
    found = nearest(workload, [(other, place) for place, other in enumerate(others)])
    gaps = [distance(workload, other) for other, _ in found]
    assert gaps == sorted(gaps)
    assert all(others[place] == other for other, place in found)
    assert len(found) == sum(distance(workload, other) <= FAR for other in others)


def test_fused_or_not_is_near_and_a_missing_size_is_not() -> None:
    plain = Workload.parse("gemv bias=no fuse=none k=576 n=960 w=q4_1")
    normed = plain.replace(norm="yes", eps="1e-06")
    queries = normed.replace(fuse="qkv", heads=9, kv_heads=3, head_dim=64, rope_dim=64, kv="f32")
    for a, b in ((plain, normed), (normed, queries), (plain, queries)):
        assert 0 < distance(a, b) == distance(b, a) < 1
    assert distance(plain, Workload.parse("gemv bias=no fuse=none k=576 w=q4_1")) == inf
    assert distance(plain, Workload.parse("gemv")) == inf
