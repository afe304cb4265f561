"""A search over a recorded space: no device, and the recorded times as the clock."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..cache.rows import BestRow, DriverRow, TrialRow
from ..cache.store import Store
from ..kernels.types import Workload
from .recorded import RecordedSpace, RecordedTrial, config_text
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


class Keeper:
    """Keeps the trials of replays of one space in a cache file, each once.

    They stand there as those of a driver of their own, so no device ever takes them for its own.
    """

    def __init__(self, store: Store, space: RecordedSpace) -> None:
        self._store = store
        self._workload = str(Workload.of("recorded", space="_".join(space.name.split())))
        content = [(config_text(t.config), t.status, t.time, t.cost) for t in space.trials]
        self._digest = hashlib.sha256(repr(content).encode()).hexdigest()[:32]
        self._driver = hashlib.sha256(f"recorded {self._digest}".encode()).hexdigest()[:32]
        store.put_driver(DriverRow(self._driver, {"name": space.name, "platform": "recorded"}))
        rows = store.trials(workload=self._workload, driver=self._driver, digest=self._digest)
        self._kept = {row.config for row in rows}

    def __call__(self, trial: RecordedTrial) -> None:
        config = config_text(trial.config)
        if config in self._kept:
            return
        self._kept.add(config)
        self._store.add_trial(
            TrialRow(self._workload, self._driver, self._digest, config, trial.status, trial.time)
        )
        best = self._store.best(self._workload, self._driver, self._digest)
        if trial.time is not None and (best is None or trial.time < best.time):
            self._store.set_best(
                BestRow(self._workload, self._driver, self._digest, config, trial.time)
            )
