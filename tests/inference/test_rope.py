"""Rotary frequencies against their published formulas, written out pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clkiln.inference.rope import Rope, yarn_attention_factor


def plain(rope: Rope) -> list[float]:
    return [rope.theta ** (-2 * pair / rope.dim) for pair in range(rope.dim // 2)]


def llama3(rope: Rope) -> list[float]:
    """Llama 3.1: by wavelength, in three cases."""
    longest = rope.original_context / rope.low_freq_factor
    shortest = rope.original_context / rope.high_freq_factor
    found = []
    for frequency in plain(rope):
        wave = 2 * math.pi / frequency
        if wave < shortest:
            found.append(frequency)
        elif wave > longest:
            found.append(frequency / rope.factor)
        else:
            turns = rope.original_context / wave
            smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
            found.append((1 - smooth) * frequency / rope.factor + smooth * frequency)
    return found


def yarn(rope: Rope) -> list[float]:
    """YaRN with its ramp over whole pair numbers, as it is published in code."""

    def corrected(turns: float) -> float:
        wave = rope.original_context / (turns * 2 * math.pi)
        return rope.dim * math.log(wave) / (2 * math.log(rope.theta))

    low = max(math.floor(corrected(rope.beta_fast)), 0)
    high = min(math.ceil(corrected(rope.beta_slow)), rope.dim - 1)
    found = []
    for pair, frequency in enumerate(plain(rope)):
        if pair <= low:
            stretched = 0.0
        elif pair >= high:
            stretched = 1.0
        else:
            stretched = (pair - low) / (high - low)
        found.append(frequency / rope.factor * stretched + frequency * (1 - stretched))
    return found


def ropes(seed: int) -> Rope:
    rng = np.random.default_rng(seed)
    return Rope(
        theta=float(rng.choice([1e4, 5e5, 1e6])),
        dim=int(rng.choice([2, 10, 64, 128])),
        style="half",
        factor=float(rng.uniform(1.5, 40)),
        original_context=int(rng.choice([64, 2048, 8192, 32768])),
        high_freq_factor=float(rng.uniform(2, 6)),
        beta_fast=float(rng.uniform(8, 40)),
    )


@pytest.mark.parametrize("seed", range(8))
def test_each_scaling_is_its_formula(seed: int) -> None:
    rope = ropes(seed)
    linear = [frequency / rope.factor for frequency in plain(rope)]
    expected = {"none": plain(rope), "linear": linear, "llama3": llama3(rope), "yarn": yarn(rope)}
    for scaling, frequencies in expected.items():
        scaled = Rope(**{**vars(rope), "scaling": scaling})
        assert scaled.frequencies().dtype == np.float64
        np.testing.assert_allclose(scaled.frequencies(), frequencies, rtol=1e-12)


def test_scalings_keep_short_waves_and_stretch_long_ones() -> None:
    """What they are for: neighbours as before, a whole context seen as a trained one."""
    rope = Rope(5e5, 128, "half", factor=8.0, original_context=8192)
    for scaling in ("llama3", "yarn"):
        ratio = np.array(plain(rope)) / Rope(**{**vars(rope), "scaling": scaling}).frequencies()
        assert (ratio[0], ratio[-1]) == (pytest.approx(1), pytest.approx(8))
        assert (np.diff(ratio) >= -1e-12).all() and 1.1 < ratio[:56].max() < 8.01


def test_the_table_is_cosine_and_sine_times_the_attention_factor() -> None:
    rope = Rope(1e4, 12, "half", "yarn", 4.0, 64, attention_factor=1.25)
    table = rope.table(300)
    assert (table.shape, table.dtype) == ((300, 6, 2), np.float32)
    for position in (0, 1, 299):
        for pair, frequency in enumerate(yarn(rope)):
            angle = position * frequency
            want = 1.25 * math.cos(angle), 1.25 * math.sin(angle)
            np.testing.assert_allclose(table[position, pair], want, atol=1e-7)


def test_factors_of_the_file_divide() -> None:
    factors = np.array([1, 2, 8, 32], np.float32)
    rope = Rope(1e4, 8, "interleaved", "linear", 2.0, file_factors=True)
    want = np.array(plain(rope)) / 2 / factors
    np.testing.assert_allclose(rope.frequencies(factors), want, rtol=1e-12)
    np.testing.assert_allclose(rope.table(9, factors)[8, :, 1], np.sin(8 * want), atol=1e-7)
    with pytest.raises(ValueError, match="factors"):
        rope.frequencies()
    with pytest.raises(ValueError, match="factors"):
        Rope(1e4, 8, "half").table(3, factors)


def test_the_attention_factor_of_yarn() -> None:
    assert yarn_attention_factor(1.0) == yarn_attention_factor(0.5) == 1
    assert yarn_attention_factor(4.0) == pytest.approx(1.1386294361)
    assert yarn_attention_factor(40.0, 0.707) == pytest.approx(1 + 0.0707 * math.log(40))
