"""Which configuration of a finite space to try next, by what the ones tried so far took.

Model-guided and greedy: the configuration with the largest expected improvement (Jones, Schonlau,
Welch 1998) over the best so far under :class:`~clkiln.tuner.surrogate.Surrogate`, times its chance
to work. With few observations the model's prior leads (numbers that are powers of two, the middle
of ranges, far from what was tried); with many the process has learnt which values go together. No
budget has to be known: what is best to do next is done next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from .grid import Config, Floats, Grid, Indices
from .surrogate import Surrogate

#: Configurations that the model looks at: as many as observations times configurations allow,
#: within these bounds. Of a larger space it is a sample, drawn anew at each fit.
WORK, NARROWEST, WIDEST = 1_500_000, 2_000, 20_000
#: Observations that the model holds, and how many of them are left when it is full.
CAPACITY, KEPT = 512, 400
#: Observations that weights are fitted to, and the share of the fastest among them.
FITTED, FASTEST = 150, 0.6
#: The first fit, and how many times as many observations there are at each following one.
FIRST_FIT, GROWTH = 5, 1.35
#: Steps of a fit: many while there are fewer than this many observations, then some.
MANY_STEPS, SOME_STEPS, FEW = 25, 15, 30
#: Results that come in at once, up to which the model is updated rather than built again.
AT_ONCE = 8
#: How much luck, in standard deviations, goes into the choice before anything is known.
LUCK = 0.5
#: How much of it decides between configurations whose merit is the same, in logarithms of it.
TIE = 0.01
#: Variance of log(time) expected before anything is known, and how many observations it is worth.
LOG_VARIANCE, LOG_VARIANCE_WORTH = 0.25, 2.0
#: Least chance to work that anything is given: a region of failures is not closed for ever.
LEAST_CHANCE = 1e-3


class Strategy:
    """Asks for indices into ``configs``, never for one twice, until each was asked for.

    ``configs`` are the feasible configurations, each a mapping from a parameter's name to its
    value; what one of them lacks counts as a value of its own. ``starts`` (indices) are asked for
    first, in their order. The same seed and the same answers give the same questions.

    Several questions may be open at a time: those are taken to come out as predicted.
    """

    def __init__(
        self, configs: Sequence[Config], *, starts: Sequence[int] = (), seed: int = 0
    ) -> None:
        self._grid = Grid(configs)
        self._random = np.random.default_rng(seed)
        self._starts = list(dict.fromkeys(starts))
        self._asked = np.zeros(self._grid.size, bool)
        self._log = np.full(self._grid.size, np.nan)  # of the time, where it is known
        self._failed = np.zeros(self._grid.size, bool)
        self._guess = np.zeros(self._grid.size)  # standardised, while a question is open
        self._order: list[int] = []  # all that the model shall know, as it came
        self._known = 0  # how much of that it does
        self._next_fit = float(FIRST_FIT)
        self._pool: Indices = np.zeros(0, np.int64)
        self._place: Indices = np.full(self._grid.size, -1)  # in the pool
        self._merit = np.full(self._grid.size, -np.inf)
        self._model = self._new_model(np.zeros(0, np.int64))

    # -- ask and tell --------------------------------------------------------------------------

    def ask(self) -> int | None:
        """The configuration to try next; None when all have been asked for."""
        while self._starts:
            index = self._starts.pop(0)
            if not self._asked[index]:
                return self._take(index)
        if self._asked.all():
            return None
        works = np.flatnonzero(~np.isnan(self._log))
        targets = self._targets(works)
        self._update(targets)
        merit = self._improvement(works, targets) if len(works) else self._promise()
        merit[self._asked[self._pool]] = -np.inf
        self._merit[self._pool] = merit
        return self._take(int(self._pool[np.argmax(merit)]))

    def tell(self, index: int, time: float | None) -> None:
        """What configuration ``index`` took, in any one unit; None where it failed.

        It need not have been asked for. Told again, the later time counts. Raises ``ValueError`` if
        ``time`` is no positive number.
        """
        if time is not None and not (time > 0 and math.isfinite(time)):
            raise ValueError(f"not a time: {time!r}")
        if index not in range(self._grid.size):
            raise ValueError(f"no configuration {index!r} among {self._grid.size}")
        if not self._asked[index]:
            self._take(index)
        self._failed[index] = time is None
        self._log[index] = math.nan if time is None else math.log(time)

    @property
    def best(self) -> tuple[int, float] | None:
        """Index and time of the fastest so far."""
        if np.isnan(self._log).all():
            return None
        index = int(np.nanargmin(self._log))
        return index, math.exp(self._log[index])

    def _take(self, index: int) -> int:
        self._asked[index] = True
        self._order.append(index)
        return index

    # -- merit ---------------------------------------------------------------------------------

    def _improvement(self, works: Indices, targets: Floats) -> Floats:
        """Logarithm of expected improvement times chance to work, for each of the pool."""
        known = self._pool[self._model.at]
        mean, deviation = self._model.predict(targets[known])
        self._guess[self._pool] = mean
        merit = _log_improvement((targets[works].min() - mean) / deviation) + np.log(deviation)
        failed = self._failed[known].astype(float)
        if failed.any():
            share = failed.mean()
            chance = 1 - share - self._model.smooth(failed - share)
            merit += np.log(np.clip(chance, LEAST_CHANCE, 1))
        merit += TIE * self._random.random(len(merit))
        return merit

    def _promise(self) -> Floats:
        """The same while nothing has worked: what is expected, away from what failed."""
        luck = LUCK * self._random.random(len(self._pool))
        tried = np.ones(len(self._model.at))
        return np.negative(self._model.prior + luck + self._model.smooth(tried))

    def _targets(self, works: Indices) -> Floats:
        """What the model learns, standardised: logarithms of times and their ranks, in turn.

        Logarithms show how much there is to gain; ranks are blind to outliers. What one of the two
        has the model overlook, the other finds. Failures count as the slowest.
        """
        targets = np.where(self._asked, self._guess, np.nan)
        if len(works):
            values = _scores if len(self._order) % 2 else _standardised
            targets[works] = values(self._log[works])
            targets[self._failed] = targets[works].max()
        return targets

    # -- the model -----------------------------------------------------------------------------

    def _update(self, targets: Floats) -> None:
        """Let the model know of all that came since the last question."""
        new = self._order[self._known :]
        due = len(self._order) >= self._next_fit or len(new) > AT_ONCE
        full = len(self._model.at) + len(new) > CAPACITY
        elsewhere = (self._place[new] < 0).any() or self._asked[self._pool].all()
        if due or full or elsewhere:
            self._refit(targets)
        else:
            for index in new:
                self._model.add(int(self._place[index]))
        self._known = len(self._order)

    def _refit(self, targets: Floats) -> None:
        order = np.array(self._order, np.int64)
        kept = self._pick(order, targets, KEPT)
        if self._grid.size > self._width:
            weights = self._model.weights
            self._model = self._new_model(kept)
            self._model.weights = weights
        if np.count_nonzero(~np.isnan(self._log)) > 1:
            fitted = self._pick(kept, targets, FITTED)
            steps = MANY_STEPS if len(order) < FEW else SOME_STEPS
            self._model.fit(self._place[fitted], targets[fitted], steps)
        self._model.reset(self._place[kept])
        self._next_fit = max(FIRST_FIT, GROWTH * len(order) + 1)

    def _pick(self, order: Indices, targets: Floats, most: int) -> Indices:
        """At most ``most``: the fastest, and others at random."""
        if len(order) <= most:
            return order
        ranked = order[np.argsort(targets[order], kind="stable")]
        first = int(FASTEST * most)
        others = self._random.choice(ranked[first:], most - first, replace=False)
        return np.concatenate([ranked[:first], others])

    def _new_model(self, known: Indices) -> Surrogate:
        """A model of what is known and of the pool to choose from."""
        size = self._grid.size
        self._pool = np.arange(size) if size <= self._width else self._sample(known)
        self._place[:] = -1
        self._place[self._pool] = np.arange(len(self._pool))
        part = self._grid if size <= self._width else self._grid.take(self._pool)
        return Surrogate(part, CAPACITY)

    @property
    def _width(self) -> int:
        return min(WIDEST, max(NARROWEST, WORK // max(1, len(self._order))))

    def _sample(self, known: Indices) -> Indices:
        """What is known; around the best; what had most merit, to half; others at random."""
        room = self._width - len(known)
        rank = self._random.random(self._grid.size)
        valued = np.flatnonzero(~self._asked & np.isfinite(self._merit))
        rank[valued[np.argsort(-self._merit[valued], kind="stable")][: room // 2]] -= 1
        if (best := self.best) is not None:
            rank[self._grid.apart(best[0]) == 1] -= 2
        free = np.flatnonzero(~self._asked)
        return np.concatenate([known, free[np.argsort(rank[free], kind="stable")][:room]])


def _standardised(logs: Floats) -> Floats:
    """Logarithms of times, cut as far above their median as the least lies below it."""
    middle = float(np.median(logs))
    logs = np.minimum(logs, 2 * middle - logs.min()) - middle
    total: float = LOG_VARIANCE * LOG_VARIANCE_WORTH + float(logs @ logs)
    return np.asarray(logs / math.sqrt(total / (LOG_VARIANCE_WORTH + len(logs))))


def _scores(logs: Floats) -> Floats:
    """Normal scores: quantiles of the normal distribution at the ranks."""
    n, normal = len(logs), NormalDist()
    quantiles = np.array([normal.inv_cdf((rank + 0.5) / n) for rank in range(n)])
    return quantiles[np.argsort(np.argsort(logs, kind="stable"), kind="stable")]


def _log_improvement(gain: Floats) -> Floats:
    """log(pdf(x) + x cdf(x)) of the standard normal distribution, x the standardised gain."""
    return np.asarray(np.interp(gain, _GAINS, _LOGS))


_GAINS = np.linspace(-37, 10, 4701)
_LOGS = np.array(
    [
        math.log(
            math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) + x * 0.5 * math.erfc(-x / math.sqrt(2))
        )
        for x in _GAINS
    ]
)
