"""Comparing outputs: nothing that is not a number passes, and integers have to be equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clkiln.harness.compare import compare

quick = settings(max_examples=150, deadline=None, derandomize=True)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
seeds = st.integers(0, 999)


def numbers(shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape)


@quick
@given(shapes, seeds, st.sampled_from([np.float32, np.float64]))
def test_what_is_equal_passes_at_any_tolerance(shape: Any, seed: int, dtype: Any) -> None:
    want = numbers(shape, seed).astype(dtype)
    for tolerance in (0.0, 1e-6):
        verdict = compare({"y": want.copy()}, {"y": want}, tolerance)
        assert verdict.ok and verdict.error == 0 and not verdict.message


@quick
@given(shapes, seeds, st.floats(1e-6, 1e-1), st.floats(0.1, 10))
def test_the_error_is_relative_to_the_whole_output(
    shape: Any, seed: int, tolerance: float, share: float
) -> None:
    """An error of a known relative L2 norm passes exactly where it is within the tolerance."""
    if abs(share - 1) < 1e-6:
        return
    want = numbers(shape, seed)
    noise = numbers(shape, seed + 1)
    noise *= share * tolerance * np.linalg.norm(want) / np.linalg.norm(noise)
    verdict = compare({"y": want + noise}, {"y": want}, tolerance)
    assert verdict.ok == (share < 1)
    assert verdict.error == pytest.approx(share * tolerance, rel=1e-6)
    if not verdict.ok:
        worst = np.unravel_index(np.argmax(np.abs(noise)), noise.shape)
        assert str([int(i) for i in worst]) in verdict.message


@quick
@given(shapes, seeds, st.sampled_from([np.nan, np.inf, -np.inf]), st.sampled_from([0, 1e9, np.inf]))
def test_no_tolerance_lets_pass_what_is_not_finite(
    shape: Any, seed: int, value: float, tolerance: float
) -> None:
    want = numbers(shape, seed)
    got = want.astype(np.float32)
    got.reshape(-1)[seed % got.size] = value
    verdict = compare({"y": got}, {"y": want}, tolerance)
    assert not verdict.ok and f"1 of {got.size} not finite" in verdict.message


@quick
@given(shapes, seeds, st.sampled_from([np.nan, np.inf]))
def test_a_reference_that_is_not_finite_never_agrees(shape: Any, seed: int, value: float) -> None:
    """Not even with the same values: no error can be worked out."""
    want = numbers(shape, seed)
    want.reshape(-1)[0] = value
    with np.errstate(invalid="ignore"):
        assert not compare({"y": want.copy()}, {"y": want}, 1e-3).ok


@quick
@given(shapes, seeds, st.integers(-5, 5))
def test_integers_are_equal_or_wrong(shape: Any, seed: int, change: int) -> None:
    want = np.random.default_rng(seed).integers(-99, 99, shape)
    got = want.astype(np.int32)
    got.reshape(-1)[seed % got.size] += change
    verdict = compare({"out": got}, {"out": want}, 1e9)
    assert verdict.ok == (change == 0)
    if change:
        assert verdict.message == f"out: 1 of {got.size} differ"


@pytest.mark.parametrize("step", [np.float32(1e-38), np.float32(1e-45)])
def test_tolerance_zero_asks_for_the_same_float(step: np.float32) -> None:
    want = np.zeros((2, 3), np.float32)
    got = want.copy()
    got[1, 1] = step
    assert not compare({"y": got}, {"y": want}, 0).ok
    one = np.ones(3, np.float32)
    assert not compare({"y": np.nextafter(one, np.float32(2))}, {"y": one}, 0).ok


def test_every_output_counts() -> None:
    want = {"a": np.ones(3), "b": np.ones(2), "n": np.array([1, 2])}
    assert compare({k: v.copy() for k, v in want.items()}, want, 1e-3).ok
    for name in want:
        got = {k: v + (k == name) for k, v in want.items()}
        verdict = compare(got, want, 1e-3)
        assert not verdict.ok and verdict.message.startswith(f"{name}:")
    with pytest.raises(KeyError):
        compare({"a": want["a"]}, want, 1e-3)


def test_an_output_of_zeros_is_compared_absolutely() -> None:
    want = np.zeros(4)
    assert compare({"y": np.full(4, 1e-6)}, {"y": want}, 1e-5).ok
    assert not compare({"y": np.full(4, 1e-4)}, {"y": want}, 1e-5).ok


def test_another_number_of_elements_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError):
        compare({"y": np.ones(5)}, {"y": np.ones(6)}, 1.0)
