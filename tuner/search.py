"""Where to look next in the space of one workload.

A spec's starting points first, one configuration of each way, then what
:class:`~clkiln.tuner.strategy.Strategy` makes of the feasible set. A space that is too large to be
enumerated is left to Optuna's tree-structured Parzen estimator, with every other proposal a
neighbour of the best so far (one parameter changed). Nothing infeasible, nothing banned and nothing
already tried is ever proposed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from ..kernels.rules import Rules
from ..kernels.spec import KernelSpec
from ..kernels.types import Config, DeviceLimits, Value, Workload
from .strategy import Strategy

if TYPE_CHECKING:
    import optuna

#: Raw spaces up to this many points are enumerated; larger ones are only sampled.
ENUMERABLE = 50_000
#: Proposals of the sampler that may be infeasible or known before a random one is taken.
RETRIES = 4
#: A variant whose best is this many times slower than the best of all is left alone, but for a
#: share of the proposals.
FAR_BEHIND, ANY_VARIANT = 2.0, 0.05


class Search:
    """Proposes configurations of one workload. ``tried`` maps what is known to its time or None."""

    def __init__(
        self,
        spec: KernelSpec,
        workload: Workload,
        limits: DeviceLimits,
        *,
        kind: str | None = None,
        rules: Rules | None = None,
        starts: Iterable[Config] = (),
        tried: Mapping[Config, float | None] | None = None,
        seed: int = 0,
    ) -> None:
        self.spec, self.workload, self.limits, self.kind = spec, workload, limits, kind
        self.rules = rules or Rules()
        self._random = random.Random(seed)
        self._seed = seed
        self._times: dict[Config, float | None] = {}
        self._starts = [c for c in dict.fromkeys(starts) if self._feasible(c)]
        self._study: optuna.Study | None = None
        self._open: dict[Config, optuna.trial.Trial] = {}
        self._turn = 0
        for config, time in (tried or {}).items():
            self._times[config] = time

    # -- the space -----------------------------------------------------------------------------

    @cached_property
    def parameters(self) -> dict[str, dict[str, tuple[Value, ...]]]:
        """Parameter values of each variant that may be searched."""
        return {
            variant.name: dict(self.spec.parameters(self.workload, variant))
            for variant in self.rules.left(self.spec.op)
            if self.kind in (None, variant.kind) and variant.requires <= self.limits.features
        }

    @cached_property
    def size(self) -> int:
        """Points of the raw space."""
        return sum(math.prod(map(len, p.values())) for p in self.parameters.values())

    @cached_property
    def feasible(self) -> list[Config] | None:
        """The feasible set, or None where the space is too large to enumerate."""
        if self.size > ENUMERABLE:
            return None
        found = self.spec.feasible(self.workload, self.limits, self.kind)
        allows = self.rules.allows
        return [config for config in found if allows(self.workload, config, self.limits)]

    @cached_property
    def _index(self) -> dict[Config, int]:
        """Where each feasible configuration stands."""
        return {config: index for index, config in enumerate(self.feasible or ())}

    @cached_property
    def _ways(self) -> dict[str, list[Config]]:
        """The feasible set by :meth:`~clkiln.kernels.spec.KernelSpec.way`."""
        ways: dict[str, list[Config]] = {}
        for config in self.feasible or ():
            ways.setdefault(self.spec.way(config), []).append(config)
        return ways

    @cached_property
    def _strategy(self) -> Strategy:
        points = [{"variant": c.variant, **dict(c.params)} for c in self.feasible or ()]
        strategy = Strategy(points, seed=self._seed)
        for config, time in self._times.items():
            if config in self._index:
                strategy.tell(self._index[config], time or None)
        return strategy

    def _feasible(self, config: Config) -> bool:
        try:
            fits = self.kind in (None, self.spec.variant(config.variant).kind)
            fits = fits and self.rules.allows(self.workload, config, self.limits)
            return fits and self.spec.check(self.workload, config, self.limits) is None
        except (KeyError, ValueError, TypeError):
            return False  # a configuration of another version of the kernel

    # -- ask and tell ----------------------------------------------------------------------------

    @property
    def tried(self) -> int:
        return len(self._times)

    def is_new(self, config: Config) -> bool:
        return config not in self._times

    @property
    def best(self) -> tuple[Config, float] | None:
        times = [
            (time, str(config), config)
            for config, time in self._times.items()
            if time and config.variant in self.parameters
        ]
        if not times:
            return None
        time, _, config = min(times, key=lambda entry: entry[:2])
        return config, time

    def ask(self) -> Config | None:
        """The next configuration to try; None when every feasible one was tried."""
        while self._starts:
            config = self._starts.pop(0)
            if config not in self._times:
                return config
        if (first := self._first_of_way()) is not None:
            return first
        if self.feasible is not None:
            index = self._strategy.ask()
            return None if index is None else self.feasible[index]
        self._turn += 1
        if self._turn % 2 == 0 and (near := self._neighbours()):
            return self._random.choice(near)
        return self._suggest() or self._any()

    def tell(self, config: Config, time: float | None) -> None:
        """Report the time of ``config`` in seconds; None if it failed."""
        self._times[config] = time
        if "_strategy" in self.__dict__ and config in self._index:
            self._strategy.tell(self._index[config], time or None)
        trial = self._open.pop(config, None)
        if self._study is None:
            return
        if trial is None:
            trial = self._enqueue(config)
        if time is None:
            import optuna

            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, math.log(time))

    def _neighbours(self) -> list[Config]:
        """Untried feasible configurations that differ from the best in one parameter."""
        if self.best is None:
            return []
        config = self.best[0]
        parameters = self.parameters.get(config.variant, {})
        found = []
        for name, values in parameters.items():
            for value in values:
                other = Config.of(config.variant, **{**dict(config.params), name: value})
                if other not in self._times and self._feasible(other):
                    found.append(other)
        return found

    def _first_of_way(self) -> Config | None:
        """A configuration of a way that was not tried: of each variant first, then of the other
        ways of those that are not far behind."""
        bests = self._variant_bests()
        for name in self.parameters:
            ways = [configs for configs in self._ways.values() if configs[0].variant == name]
            if name not in bests and ways:
                return self._most_like_best([config for configs in ways for config in configs])
        limit = FAR_BEHIND * self.best[1] if self.best else 0.0
        tried = {self.spec.way(config) for config in self._times}
        for way, configs in self._ways.items():
            if way not in tried and bests.get(configs[0].variant, math.inf) <= limit:
                return self._most_like_best(configs)
        return None

    def _most_like_best(self, configs: Iterable[Config]) -> Config | None:
        """The untried one that is most like the best of all."""
        like = dict(self.best[0].params) if self.best else {}
        found = [config for config in configs if config not in self._times]
        return max(found, key=lambda c: sum(like.get(n) == v for n, v in c.params), default=None)

    def _any(self) -> Config | None:
        for _ in range(1000 * RETRIES):
            variant = self._random.choice(list(self.parameters))
            values = {n: self._random.choice(v) for n, v in self.parameters[variant].items()}
            config = Config.of(variant, **values)
            if config not in self._times and self._feasible(config):
                return config
        return None

    # -- Optuna ----------------------------------------------------------------------------------

    def _suggest(self) -> Config | None:
        """A new feasible proposal of the sampler, or None if it keeps proposing others."""
        import optuna

        study = self._get_study()
        for _ in range(RETRIES):
            trial = study.ask()
            config = self._read(trial, self._random.choice(self._promising()))
            if config not in self._times and config not in self._open and self._feasible(config):
                self._open[config] = trial
                return config
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return None

    def _promising(self) -> list[str]:
        """The variants to propose from: now and then any, else those not far behind the best."""
        if self.best is None or self._random.random() < ANY_VARIANT:
            return list(self.parameters)
        bests = self._variant_bests()
        limit = FAR_BEHIND * self.best[1]
        return [name for name in self.parameters if bests.get(name, 0.0) <= limit]

    def _variant_bests(self) -> dict[str, float]:
        """Best time of each variant that was tried; infinite where nothing of it worked."""
        bests: dict[str, float] = {}
        for config, time in self._times.items():
            known = bests.get(config.variant, math.inf)
            bests[config.variant] = min(known, time or math.inf)
        return bests

    def _get_study(self) -> optuna.Study:
        if self._study is None:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            sampler = optuna.samplers.TPESampler(seed=self._seed, n_startup_trials=8)
            self._study = optuna.create_study(sampler=sampler, direction="minimize")
            for config, time in list(self._times.items()):
                if time and self._feasible(config):
                    self._study.tell(self._enqueue(config), math.log(time))
        return self._study

    def _read(self, trial: optuna.trial.Trial, variant: str) -> Config:
        values: dict[str, Value] = {}
        for name, choices in self.parameters[variant].items():
            # By index: Optuna's choices may be of more types than a parameter's values are.
            index = trial.suggest_categorical(f"{variant}.{name}", list(range(len(choices))))
            values[name] = choices[int(index or 0)]
        return Config.of(variant, **values)

    def _enqueue(self, config: Config) -> optuna.trial.Trial:
        """A trial of the study whose parameters are ``config``'s."""
        assert self._study is not None
        choices = self.parameters[config.variant]
        fixed = {f"{config.variant}.{n}": choices[n].index(v) for n, v in config.params}
        self._study.enqueue_trial(fixed)
        trial = self._study.ask()
        self._read(trial, config.variant)
        return trial
