"""Comparing what a kernel wrote with its reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..kernels.types import Array


@dataclass(frozen=True)
class Verdict:
    """Whether outputs agree with the reference. ``error`` is the worst relative L2 error."""

    ok: bool
    error: float
    message: str = ""


def compare(
    outputs: Mapping[str, Array], reference: Mapping[str, Array], tolerance: float
) -> Verdict:
    """Compare by ``||out - ref|| / ||ref||`` per output; integers must be equal; NaN never passes.

    A tolerance of 0 asks for equality of floats, too.
    """
    worst = 0.0
    for name, expected in reference.items():
        got = outputs[name].reshape(expected.shape)
        if np.issubdtype(expected.dtype, np.integer):
            wrong = int(np.count_nonzero(got != expected))
            if wrong:
                return Verdict(False, float("inf"), f"{name}: {wrong} of {got.size} differ")
            continue
        with np.errstate(invalid="ignore"):  # a signalling NaN is a result like any other
            got64 = got.astype(np.float64)
        bad = int(np.count_nonzero(~np.isfinite(got64) & np.isfinite(expected)))
        if bad:
            return Verdict(False, float("inf"), f"{name}: {bad} of {got.size} not finite")
        norm = float(np.linalg.norm(expected.astype(np.float64)))
        error = float(np.linalg.norm(got64 - expected)) / (norm or 1.0)
        worst = max(worst, error)
        if not error <= tolerance:
            where = np.unravel_index(int(np.argmax(np.abs(got64 - expected))), expected.shape)
            place = [int(i) for i in where]
            text = f"{name}: relative L2 error {error:.2e} > {tolerance:.0e}, worst at {place}"
            return Verdict(False, error, text)
    return Verdict(True, worst)
