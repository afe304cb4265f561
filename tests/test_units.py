"""Numbers as people read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clkiln.units import readable, three_digits

BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 << 29, "1.50 GiB"), (5 << 40, "5.00 TiB"),
     (2**20 - 1, "1.00 MiB"), (123 << 20, "123 MiB")],
)  # fmt: skip
def test_sizes(nbytes: int, text: str) -> None:
    assert readable(nbytes) == text


@given(st.integers(0, 2**60))
def test_sizes_are_right_to_three_digits(nbytes: int) -> None:
    number, unit = readable(nbytes).split(" ")
    assert abs(float(number) * BYTES[unit] - nbytes) <= 0.005 * nbytes
    assert unit in ("B", "TiB") or len(re.sub(r"\D", "", number)) <= 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00"),
        (4.396, "4.40"),
        (9.996, "10.0"),
        (99.96, "100"),
        (-12.34, "-12.3"),
        (4e3, "4000"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text
