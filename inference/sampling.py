"""From logits to a token: greedy, or sampled with temperature, top-k and top-p."""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

from ..errors import GenerationError, UsageError

Logits = NDArray[np.float32]

# Most nuclei are small: look at this many of the likeliest tokens before sorting more.
_FIRST_LOOK = 256


def check_logits(logits: Logits, step: int, device: str) -> None:
    """Raise ``GenerationError`` if the logits ``[vocab]`` of a step cannot be a model's.

    A kernel that went wrong shows as values that are not finite, or as one value everywhere
    (an output that nothing wrote).
    """
    low, high = logits.min(), logits.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(logits)))
        what = f"{count} of {logits.size} logits are not finite"
    elif low == high and logits.size > 1:
        what = f"all {logits.size} logits are {low:g}"
    else:
        return
    raise GenerationError(
        f"{what} at step {step} on {device}: the device computed nonsense; run clkiln tune --force"
    )


class Sampler:
    """Picks tokens; one seed and one sequence of logits give one sequence of tokens.

    ``temperature`` 0 is greedy. ``top_k`` keeps the k likeliest tokens (0: all), ``top_p`` then
    the fewest of those whose probabilities reach p (1: all), the one that crosses included.
    ``seed`` None draws one, kept in ``seed`` so that a run can be repeated. Raises ``UsageError``
    for values that make no sense.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise UsageError(f"temperature {temperature} is not a number from 0 up")
        if top_k < 0:
            raise UsageError(f"top-k {top_k} is negative; 0 keeps all tokens")
        if not 0 < top_p <= 1:
            raise UsageError(f"top-p {top_p} is not above 0 and at most 1")
        if seed is not None and seed < 0:
            raise UsageError(f"seed {seed} is negative")
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.seed = secrets.randbits(32) if seed is None else seed
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    def pick(self, logits: Logits) -> int:
        """A token id for finite ``logits`` ``[vocab]``; of equal logits the lowest id is first."""
        if self.temperature == 0:
            return int(np.argmax(logits))
        ids, weights = self._candidates(logits)
        total = np.cumsum(weights)
        # random() ends at 1 - 2^-53, and such a product rounds below the total: a token of weight 0
        # is never drawn.
        drawn = self._random.random() * total[-1]
        return int(ids[np.searchsorted(total, drawn, side="right")])

    def _candidates(self, logits: Logits) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Ids that may be drawn, likeliest first where it matters, and their weights."""
        keep = min(self.top_k or logits.size, logits.size)
        ids = _largest(logits, keep) if keep < logits.size else np.arange(logits.size)
        # The largest exponent is 0: nothing overflows, however small the temperature.
        with np.errstate(over="ignore", under="ignore"):
            scaled = (logits[ids].astype(np.float64) - float(logits.max())) / self.temperature
            weights = np.exp(scaled)
        if self.top_p == 1:
            return ids, weights
        order = _nucleus(weights, self.top_p)
        return ids[order], weights[order]


def _largest(values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Positions of the ``count`` largest values, largest first, lower positions first in ties."""
    smallest_kept = np.partition(values, -count)[-count]
    found = np.flatnonzero(values >= smallest_kept)
    order = np.argsort(-values[found], kind="stable")
    return found[order[:count]]


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Positions of the fewest weights that reach ``top_p`` of their sum, largest first."""
    target = top_p * weights.sum()
    look = min(_FIRST_LOOK, weights.size)
    while True:
        order = _largest(weights, look)
        reached = np.cumsum(weights[order])
        if reached[-1] >= target or look == weights.size:
            # Rounding may leave the whole sum just below its target: then all are kept.
            return order[: int(np.searchsorted(reached, target)) + 1]
        look = min(look * 8, weights.size)
