"""Spaces counted under limits: against plain counting, over devices that are not there."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clk_cases import TINY
from clk_run import Limits
from clkiln.errors import UsageError
from clkiln.kernels import SPECS
from clkiln.kernels.survey import description, group_reasons, parse_workload, summary, survey
from clkiln.kernels.types import Workload

LIMITS = (
    Limits(),
    Limits("gpu", 3, 16 << 10, 48, (48, 16, 16)),
    Limits(
        "gpu",
        132,
        48 << 10,
        1024,
        (1024, 1024, 64),
        1 << 32,
        features=frozenset({"images", "image_buffers"}),
    ),
)


@pytest.mark.parametrize("op", SPECS)
def test_counts_add_up(op: str) -> None:
    spec = SPECS[op]
    for text in TINY[op][:2]:
        workload = Workload.parse(text)
        for limits in LIMITS:
            found = survey(workload, limits)
            feasible = Counter(config.variant for config in spec.feasible(workload, limits))
            for each in found:
                assert each.feasible == feasible[each.variant.name]
                ruled_out = sum(count for _, count in each.reasons)
                assert each.configurations == each.feasible + ruled_out
                assert bool(each.missing) == (not each.variant.requires <= limits.features)
                if each.missing:
                    assert each.feasible == 0 and len(each.reasons) == 1
        free = survey(workload)
        assert sum(each.configurations for each in free) == len(list(spec.space(workload)))
        assert all(each.feasible is None and not each.reasons for each in free)


@pytest.mark.parametrize("op", SPECS)
def test_every_operation_has_an_example_and_words(op: str) -> None:
    spec = SPECS[op]
    workload = Workload.parse(spec.example)
    assert workload.op == op
    assert parse_workload(" ".join([op, *reversed(spec.example.split()[1:])])) == workload
    assert spec.feasible(workload, LIMITS[2])
    words = [summary(spec), *description(spec)]
    assert all(words) and "``" not in " ".join(words) and ":class:" not in " ".join(words)
    for each in survey(workload):
        for name in each.parameters:
            # What a parameter is, is said somewhere.
            assert any(name in re.findall(r"\w+", text) for text in words), name


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99), st.integers(0, 99))))
def test_reasons_are_grouped_by_their_words(parts: list[tuple[str, int, int]]) -> None:
    grouped = group_reasons(f"{word} {low} > {high} fp16" for word, low, high in parts)
    assert sum(count for _, count in grouped) == len(parts)
    assert [count for _, count in grouped] == sorted((c for _, c in grouped), reverse=True)
    assert sorted(text[0] for text, _ in grouped) == sorted({word for word, _, _ in parts})
    for text, _ in grouped:
        lows = [low for word, low, _ in parts if word == text[0]]
        low, high = min(lows), max(lows)
        assert text[2:].startswith(f"{low} >" if low == high else f"{low}-{high} >")
        assert text.endswith("fp16")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no kernel ''"),
        ("gemvv", "did you mean gemv"),
        ("gemv", "lacks bias, fuse, k, n, w"),
        ("gemv foo", "write it like"),
        ("gemv bias=no fuse=none k=0 n=4 w=q4_0", "k=0 is no size"),
        ("gemv bias=no fuse=none k=x n=4 w=q4_0", "k=x is no size"),
        ("gemv bias=no fuse=none k=32 n=4 w=q9_9", "no weight dtype 'q9_9'"),
        (f"gemv bias=no fuse=none k={10**30} n=4 w=q4_0", "is no size"),
    ],
)
def test_workloads_that_are_none(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_workload(text)


@pytest.mark.parametrize(
    "text",
    [
        "rmsnorm d=4 eps=abc m=1",
        "rope ctx=8 head_dim=4 heads=1 kv=f32 kv_heads=1 m=1 rope_dim=4 style=spiral",
        "attention_decode ctx=8 head_dim=3 heads=5 kv=f99 kv_heads=9",
        f"gemm bias=maybe fuse=not k=1 m={2**39} n={2**39} w=f32",
    ],
)
def test_nonsense_in_a_workload_is_no_crash(text: str) -> None:
    try:
        survey(parse_workload(text), LIMITS[2])
    except UsageError as error:
        assert text.split()[0] in str(error) and "\n" not in str(error)


def test_stacked_parts_of_several_formats_have_workloads_too() -> None:
    workload = parse_workload("gemv bias=no fuse=none k=256 n=4 w=mix6mg16k")
    assert all(found.parameters["S"] == (8, 32) for found in survey(workload))
