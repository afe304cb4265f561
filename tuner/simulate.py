"""A search over a recorded space: no device, and the recorded times as the clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .recorded import RecordedSpace, RecordedTrial
from .strategy import Strategy


class Space(Protocol):
    """What :func:`strategy` needs of a space: its feasible configurations."""

    @property
    def configs(self) -> Sequence[Mapping[str, Any]]: ...


def strategy(space: Space, evaluate: Callable[[Any], float | None], seed: int) -> None:
    """Search ``space`` until ``evaluate`` raises or every configuration was tried.

    ``evaluate`` takes one of ``space.configs`` and gives its time, in any one unit, or None where
    it fails.
    """
    search = Strategy(space.configs, seed=seed)
    while (index := search.ask()) is not None:
        search.tell(index, evaluate(space.configs[index]))


@dataclass
class Replay:
    """How a search over a recorded space went. ``curve``: recorded seconds -> best time so far."""

    space: RecordedSpace
    asked: list[int] = field(default_factory=list)
    seconds: float = 0.0
    best: RecordedTrial | None = None
    curve: list[tuple[float, float]] = field(default_factory=list)

    @property
    def share(self) -> float | None:
        """The optimum's time over the best found: 1 where it was found."""
        if self.best is None or self.best.time is None or self.space.optimum is None:
            return None
        return self.space.optimum / self.best.time

    @property
    def random(self) -> float | None:
        """The time, in seconds, that as many configurations taken at random come to.

        The one at the mean rank of the best of m out of n, (n + 1) / (m + 1) from below.
        """
        times = np.sort(self.space.times[~np.isnan(self.space.times)])
        if not len(times) or not self.asked:
            return None
        rank = round((len(times) + 1) / (len(self.asked) + 1))
        return float(times[min(max(rank, 1), len(times)) - 1])

    def _add(self, index: int) -> None:
        trial = self.space.trials[index]
        self.asked.append(index)
        self.seconds += trial.cost
        if trial.time is not None and (
            self.best is None or trial.time < (self.best.time or math.inf)
        ):
            self.best = trial
        if self.best is not None:
            self.curve.append((self.seconds, self.best.time or math.inf))


def replay(
    space: RecordedSpace,
    *,
    seconds: float | None = None,
    trials: int | None = None,
    seed: int = 0,
    keep: Callable[[RecordedTrial], None] | None = None,
) -> Replay:
    """Search ``space`` for ``seconds`` of recorded time and at most ``trials`` trials.

    A trial that begins within the time counts. ``keep`` is called with each. The same seed takes
    the same way, so a run that was killed and is begun again passes by what it had kept.
    """
    search, done = Strategy(space.configs, seed=seed), Replay(space)
    while len(done.asked) < (math.inf if trials is None else trials):
        if seconds is not None and done.seconds >= seconds:
            break
        index = search.ask()
        if index is None:
            break
        done._add(index)
        search.tell(index, space.trials[index].time)
        if keep is not None:
            keep(space.trials[index])
    return done
