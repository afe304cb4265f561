"""Rotary position embedding: the angle by which each pair of values turns at each position.

Everything is computed in float64 on the host; a kernel reads the table. Sources: Su et al.,
"RoFormer" (2021), equation 15, for the frequencies; Chen et al., "Extending Context Window"
(2023) for linear scaling; the Llama 3.1 model card's scaling by wavelength; Peng et al., "YaRN"
(2023), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..kernels.types import Array

RopeStyle = Literal["interleaved", "half"]
RopeScaling = Literal["none", "linear", "llama3", "yarn"]


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """By what YaRN multiplies cosine and sine (its equation 22): 0.1 ``mscale`` ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of a model.

    ``theta`` is the base of the frequencies, ``dim`` the rotated values of a head (even). ``style``
    tells which of them form a pair: neighbours (``interleaved``), or i and i + dim / 2 (``half``).
    ``factor`` is by how much a scaling stretches the ``original_context`` (in tokens) that the
    model was trained for. ``llama3`` knows two wavelengths, ``original_context`` over
    ``low_freq_factor`` and over ``high_freq_factor``; ``yarn`` two numbers of turns within the
    original context, ``beta_fast`` and ``beta_slow``. ``attention_factor`` multiplies cosine and
    sine; ``file_factors`` says that the model file has a vector that divides the frequencies.
    """

    theta: float
    dim: int
    style: RopeStyle
    scaling: RopeScaling = "none"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    file_factors: bool = False

    def frequencies(self, file_factors: Array | None = None) -> NDArray[np.float64]:
        """float64 ``[dim / 2]``: radians by which each pair turns from one position to the next.

        ``file_factors`` (``[dim / 2]``) are given if, and only if, :attr:`file_factors` says so;
        else ``ValueError``.
        """
        if (file_factors is not None) != self.file_factors:
            raise ValueError("rotary factors of the file: given and not wanted, or the reverse")
        plain = self.theta ** -(np.arange(0, self.dim, 2) / self.dim)
        if self.scaling == "linear":
            plain = plain / self.factor
        elif self.scaling == "llama3":
            plain = self._mixed(plain, self._by_wavelength(plain))
        elif self.scaling == "yarn":
            plain = self._mixed(plain, self._by_turns())
        return plain if file_factors is None else plain / file_factors.astype(np.float64)

    def table(self, positions: int, file_factors: Array | None = None) -> NDArray[np.float32]:
        """float32 ``[positions, dim / 2, 2]``: cosine and sine of each angle, as scaled."""
        angles = np.outer(np.arange(positions), self.frequencies(file_factors))
        turns = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        return (self.attention_factor * turns).astype(np.float32)

    def _mixed(self, plain: NDArray[np.float64], kept: NDArray[np.float64]) -> NDArray[np.float64]:
        """Frequencies of which the share ``kept`` stays; the rest is divided by the factor."""
        return kept * plain + (1 - kept) * plain / self.factor

    def _by_wavelength(self, plain: NDArray[np.float64]) -> NDArray[np.float64]:
        """llama3: short waves stay, long ones are stretched, with a ramp in between."""
        waves = self.original_context * plain / (2 * math.pi)  # in the original context
        ramp = (waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return np.clip(ramp, 0, 1)

    def _by_turns(self) -> NDArray[np.float64]:
        """YaRN's ramp: over pair numbers, between those that turn beta_fast and beta_slow times."""

        def pair(turns: float) -> float:
            """The (fractional) pair that turns so often within the original context."""
            wave = self.original_context / (2 * math.pi * turns)
            return self.dim * math.log(wave) / (2 * math.log(self.theta))

        low = max(math.floor(pair(self.beta_fast)), 0)
        high = min(math.ceil(pair(self.beta_slow)), self.dim - 1)
        # A ramp of no length is a step.
        ramp = (np.arange(self.dim // 2) - low) / max(high - low, 1e-3)
        return 1 - np.clip(ramp, 0, 1)
