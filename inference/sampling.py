"""From logits to a token: penalties, then the likeliest, or one drawn from the likely ones."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import GenerationError, UsageError

Logits = NDArray[np.float32]
Scores = NDArray[np.floating]

#: Tokens that the repeat penalty looks back on, the prompt's included.
REPEAT_LAST_N = 64
# Most nuclei are small: look at this many of the likeliest tokens before sorting more.
_FIRST_LOOK = 256
# Far past any logit, and differences of such numbers are finite.
_HUGE = 1e30


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


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities of finite ``logits`` ``[vocab]``."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - math.log(np.exp(shifted).sum())


class Sampler:
    """Picks tokens; one seed and one sequence of logits give one sequence of tokens.

    Each pick goes through these steps, in llama.cpp's order:

    1. ``repeat_penalty`` divides the positive logits of the tokens among the last
       ``repeat_last_n`` (-1: all), the prompt's included, and multiplies the negative ones
       (Keskar et al., "CTRL", 2019, section 4.1). 1 is off.
    2. ``frequency_penalty`` is taken off a token's logit as often as the token was generated in
       this answer, ``presence_penalty`` once if it was (OpenAI API reference). 0 is off.
    3. ``top_k`` keeps the k likeliest tokens (0: all).
    4. ``top_p`` keeps the fewest of those whose probabilities reach p, the one that crosses
       included (1: all; Holtzman et al. 2020).
    5. ``min_p`` keeps tokens with at least that share of the likeliest token's probability
       (0: all; Nguyen et al. 2024).
    6. ``temperature`` divides what is left, and one token is drawn. It comes last: a high
       temperature makes kept tokens more alike, and brings no dropped one back. At 0, the
       likeliest token after the penalties is taken.

    ``seed`` None draws one, kept in ``seed`` so that a run can be repeated. Raises ``UsageError``
    for values that make no sense.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        *,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        repeat_last_n: int = REPEAT_LAST_N,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
    ) -> None:
        if not 0 <= temperature < math.inf:
            raise UsageError(f"temperature {temperature} is not a number from 0 up")
        if top_k < 0:
            raise UsageError(f"top-k {top_k} is negative; 0 keeps all tokens")
        if not 0 < top_p <= 1:
            raise UsageError(f"top-p {top_p} is not above 0 and at most 1")
        if not 0 <= min_p <= 1:
            raise UsageError(f"min-p {min_p} is not between 0 and 1")
        if not 0 < repeat_penalty < math.inf:
            raise UsageError(f"repeat penalty {repeat_penalty} is not a number above 0; 1 is off")
        for name, value in (("presence", presence_penalty), ("frequency", frequency_penalty)):
            if not math.isfinite(value):
                raise UsageError(f"{name} penalty {value} is not a finite number")
        if seed is not None and seed < 0:
            raise UsageError(f"seed {seed} is negative")
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.min_p = min_p
        self.seed = secrets.randbits(32) if seed is None else seed
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._repeat = repeat_penalty if repeat_last_n else 1.0
        self._last_n = repeat_last_n
        self._presence, self._frequency = presence_penalty, frequency_penalty
        self._seen: list[int] = []
        self._generated: Counter[int] = Counter()

    @property
    def penalises(self) -> bool:
        """Whether any penalty is on."""
        return self._repeat != 1 or self._presence != 0 or self._frequency != 0

    @property
    def plain(self) -> bool:
        """Whether the pick is the largest of the logits as they are."""
        return self.temperature == 0 and not self.penalises

    def begin(self, prompt: Sequence[int]) -> None:
        """A new answer to the token ids of ``prompt``."""
        self._seen, self._generated = list(prompt), Counter()

    def saw(self, token: int) -> None:
        """``token`` was generated."""
        self._seen.append(token)
        self._generated[token] += 1

    def pick(self, logits: Logits) -> int:
        """A token id for finite ``logits`` ``[vocab]``; of equal logits the lowest id is first."""
        scores = self.penalised(logits) if self.penalises else logits
        if self.temperature == 0:
            return int(np.argmax(scores))
        ids, weights = self._candidates(scores)
        total = np.cumsum(weights)
        # random() ends at 1 - 2^-53, and such a product rounds below the total: a token of weight 0
        # is never drawn.
        drawn = self._random.random() * total[-1]
        return int(ids[np.searchsorted(total, drawn, side="right")])

    def penalised(self, logits: Logits) -> NDArray[np.float64]:
        """Steps 1 and 2."""
        scores = logits.astype(np.float64)
        # Any finite penalty is allowed, and what it makes must stay a number.
        with np.errstate(over="ignore"):
            recent = self._seen if self._last_n < 0 else self._seen[-self._last_n :]
            if self._repeat != 1 and recent:
                ids = np.unique(recent)
                old = scores[ids]
                new = np.where(old > 0, old / self._repeat, old * self._repeat)
                scores[ids] = np.clip(new, -_HUGE, _HUGE)
            if self._generated:
                ids = np.fromiter(self._generated, np.intp)
                counts = np.fromiter(self._generated.values(), np.float64)
                scores[ids] -= np.clip(self._frequency * counts + self._presence, -_HUGE, _HUGE)
        return scores

    def _candidates(self, scores: Scores) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Steps 3 to 6: ids that may be drawn, likeliest first where it matters, and weights."""
        keep = min(self.top_k or scores.size, scores.size)
        ids = largest(scores, keep) if keep < scores.size else np.arange(scores.size)
        # The largest exponent is 0: nothing overflows, however small the temperature.
        with np.errstate(over="ignore", under="ignore"):
            below = scores[ids].astype(np.float64) - float(scores.max())
            if self.top_p < 1:
                order = _nucleus(np.exp(below), self.top_p)
                ids, below = ids[order], below[order]
            if self.min_p > 0:
                likely = below >= math.log(self.min_p)
                ids, below = ids[likely], below[likely]
            return ids, np.exp(below / self.temperature)


def largest(values: Scores, count: int) -> NDArray[np.intp]:
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
        order = largest(weights, look)
        reached = np.cumsum(weights[order])
        if reached[-1] >= target or look == weights.size:
            # Rounding may leave the whole sum just below its target: then all are kept.
            return order[: int(np.searchsorted(reached, target)) + 1]
        look = min(look * 8, weights.size)
