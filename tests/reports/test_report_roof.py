"""The roofline model, and the way the report writes numbers."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clk_report_caches import WORKLOADS
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config
from clkiln.reports import roof, text
from clkiln.reports.model import Roof

AMOUNTS = st.integers(0, 10**15)
RATES = st.floats(1e3, 1e16)
TIMES = st.floats(1e-9, 1e3)


@given(AMOUNTS, AMOUNTS, RATES, RATES, TIMES)
def test_the_slower_ceiling_binds(
    flops: int, nbytes: int, bytes_per_s: float, flops_per_s: float, time: float
) -> None:
    assume(flops or nbytes)
    share = roof.share(roof.Cost(flops, nbytes), Roof(bytes_per_s, flops_per_s), time, None)
    assert share is not None and share.share is not None
    memory, arithmetic = nbytes / bytes_per_s, flops / flops_per_s
    assert share.seconds == max(memory, arithmetic)
    assert share.seconds == (memory if share.bound == "memory" else arithmetic)
    assert share.share == pytest.approx(share.seconds / time)
    assert share.default_share is None


@given(st.integers(1, 10**15), st.integers(1, 10**15), RATES)
def test_no_share_without_both_ceilings(flops: int, nbytes: int, rate: float) -> None:
    cost = roof.Cost(flops, nbytes)
    assert roof.least_time(cost, Roof(None, rate)) is None
    assert roof.least_time(cost, Roof(rate, None)) is None
    assert roof.least_time(cost, Roof(None, None)) is None
    # What does no arithmetic needs no arithmetic ceiling.
    assert roof.least_time(roof.Cost(0, nbytes), Roof(rate, None)) == ("memory", nbytes / rate)


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_the_cost_is_the_spec_s(workload) -> None:
    spec = SPECS[workload.op]
    expected = roof.Cost(spec.flops(workload), spec.bytes(workload))
    assert roof.cost(str(workload), SPECS) == expected


@pytest.mark.parametrize(
    "workload",
    [
        "",
        "gemv",
        "gemv k",
        "gemv k=x n=2 w=q4_1",
        "conv k=3",
        "gemv n=2 k=3",
        "argmax n=" + "9" * 99,
    ],
)
def test_a_workload_that_makes_no_sense_has_no_cost(workload: str) -> None:
    assert roof.cost(workload, SPECS) is None


def _seconds(written: str) -> float:
    """What a written duration says, in seconds."""
    units = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
    return sum(float(n) * units[unit] for n, unit in re.findall(r"([\d.]+) (\w+)", written))


@given(st.floats(1e-8, 3e5) | st.floats(59, 8000))
def test_a_duration_says_what_it_was_given(seconds: float) -> None:
    written = text.duration(seconds)
    coarse = 30.0 if " h " in written else 0.5 if " min " in written else 0.0
    assert _seconds(written) == pytest.approx(seconds, rel=0.006, abs=coarse)
    assert len(written) <= 11


@given(st.integers(0, 2**50))
def test_a_size_says_what_it_was_given(count: int) -> None:
    number, unit = text.size(count).split(" ")
    factor = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]
    assert float(number) * factor == pytest.approx(count, rel=0.006)


@given(st.floats(1e3, 1e17))
def test_a_rate_says_what_it_was_given(per_s: float) -> None:
    number, unit = text.rate(per_s, "B/s").split(" ")
    factor = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit.removesuffix("B/s")]
    assert float(number) * factor == pytest.approx(per_s, rel=0.006)


def test_what_is_missing_is_written_as_such() -> None:
    written = (
        text.duration(None),
        text.rate(None, "B/s"),
        text.percent(None),
        text.factor(None),
        text.tokens(None),
        text.day(""),
        text.parameters(None),
    )
    assert set(written) == {text.MISSING}


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), st.integers(0, 999), max_size=4)
)
def test_parameters_are_written_in_full(params: dict[str, int]) -> None:
    params.pop("variant", None)
    written = text.parameters(str(Config.of("image", **params)))
    variant, *pairs = written.replace(":", "").split(" ")
    assert variant == "image"
    assert dict(pair.split("=") for pair in pairs) == {k: str(v) for k, v in params.items()}


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_a_label_leaves_out_what_is_not_used_and_no_more(workload) -> None:
    op, *items = text.label(str(workload)).split(" ")
    used = [(n, v) for n, v in workload.items if n != "eps" and v not in ("no", "none")]
    left = [f"{name}={value}" for name, value in used]
    assert (op, items) == (workload.op, left)
