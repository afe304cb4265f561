"""The space of a workload: which of its configurations a device can run.

A space has up to several thousand configurations, and each check of one reads a few parameters
only. So each is done once for the values that it reads, and a space is listed in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from itertools import product
from typing import TYPE_CHECKING, Literal

from .feasible import CHECKS, Infeasible
from .types import Config, DeviceLimits, Value, Variant, Workload

if TYPE_CHECKING:
    from .spec import KernelSpec

_Values = tuple[Value, ...]


class _Unknown(Enum):
    YET = 0


class Space:
    """The configurations of one variant of a workload under a device's limits.

    Where ``layout`` is given, those that read the weight's layout of that name.
    """

    def __init__(
        self,
        spec: KernelSpec,
        workload: Workload,
        variant: Variant,
        limits: DeviceLimits,
        layout: str | None = None,
    ) -> None:
        self._variant = variant.name
        self._parameters = spec.parameters(workload, variant)

        def reads_layout(config: Config) -> Infeasible | None:
            if layout is None or spec.layout(workload, config) == layout:
                return None
            return Infeasible(f"no configuration reads the weight's layout, {layout}")

        def bound(check: Callable[..., Infeasible | None]) -> _Kept:
            return self._kept(lambda config: check(spec, workload, config, limits))

        self._checks = [self._kept(reads_layout), *map(bound, CHECKS)]

    def feasible(self) -> Iterator[Config]:
        """Those that nothing speaks against."""
        for values in product(*self._parameters.values()):
            if self._broken(values) is None:
                yield self._config(values)
            elif self._empty():
                return

    def find(self) -> Config | Infeasible:
        """The first of :meth:`feasible`; else what the one that is nearest to running breaks.

        What one check rules out for all configurations with the same values counts for all of them:
        none is nearer for something else that it breaks.
        """
        nearest: Infeasible | None = None
        for values in product(*self._parameters.values()):
            if any(check.refuses(values) for check in self._checks):
                continue
            broken = self._broken(values)
            if broken is None:
                return self._config(values)
            nearest = nearer(nearest, broken)
            if self._empty():
                break
        return nearest or Infeasible(f"{self._variant} has no configuration for it")

    def _broken(self, values: _Values) -> Infeasible | None:
        for check in self._checks:
            broken = check(values)
            if broken is not None:
                return broken
        return None

    def _empty(self) -> bool:
        """Whether something speaks against all of it."""
        return any(check.refuses_all for check in self._checks)

    def _config(self, values: _Values) -> Config:
        return Config.of(self._variant, **dict(zip(self._parameters, values, strict=True)))

    def _kept(self, check: Callable[[Config], Infeasible | None]) -> _Kept:
        return _Kept(check, self._variant, tuple(self._parameters))


def nearer(one: Infeasible | None, other: Infeasible) -> Infeasible:
    """Of two the one that is nearer to running; what is no limit of the device says least."""
    if one is None:
        return other
    return min(one, other, key=lambda found: (not found.excess, found.excess))


class _Kept:
    """A check whose answers are kept, by the values of the parameters that it has read.

    What a check reads next depends on what it has read before and on nothing else, so two
    configurations that agree in what it read of the first have the same answer.
    """

    def __init__(
        self, check: Callable[[Config], Infeasible | None], variant: str, names: tuple[str, ...]
    ) -> None:
        self._check = check
        self._variant = variant
        self._names = names
        # Answers by the values at the places of the parameters that were read.
        self._answers: dict[tuple[int, ...], dict[_Values, Infeasible | None]] = {}
        #: Whether it was broken without a look at any parameter: then everything breaks it.
        self.refuses_all = False

    def refuses(self, values: _Values) -> bool:
        """Whether ``values`` are known to break it."""
        return isinstance(self._answer(values), Infeasible)

    def __call__(self, values: _Values) -> Infeasible | None:
        answer = self._answer(values)
        if answer is not _Unknown.YET:
            return answer
        config = _Traced(self._variant, dict(zip(self._names, values, strict=True)))
        found = self._check(config)
        places = tuple(place for place, name in enumerate(self._names) if name in config.read)
        answers = self._answers.setdefault(places, {})
        answers[tuple([values[place] for place in places])] = found
        self.refuses_all = self.refuses_all or (found is not None and not places)
        return found

    def _answer(self, values: _Values) -> Infeasible | Literal[_Unknown.YET] | None:
        for places, answers in self._answers.items():
            key = tuple([values[place] for place in places])
            if key in answers:
                return answers[key]
        return _Unknown.YET


class _Traced(Config):
    """A configuration that notes which of its parameters are read."""

    read: set[str]
    _values: dict[str, Value]

    def __init__(self, variant: str, values: dict[str, Value]) -> None:
        # The base is frozen; params and _map are computed here.
        self.__dict__.update(variant=variant, _values=values, read=set())

    def __eq__(self, other: object) -> bool:
        """As of the configuration that it stands for, whose class is another."""
        if not isinstance(other, Config):
            return NotImplemented
        return (self.variant, self.params) == (other.variant, other.params)

    def __hash__(self) -> int:
        return hash((self.variant, self.params))

    @property
    def params(self) -> tuple[tuple[str, Value], ...]:
        return tuple(sorted(self._map.items()))

    @property
    def _map(self) -> dict[str, Value]:
        self.read.update(self._values)
        return self._values

    def __getitem__(self, name: str) -> int:
        self.read.add(name)
        value = self._values[name]
        if not isinstance(value, int):
            raise TypeError(f"{name} is not a number")
        return value

    def get(self, name: str, default: int) -> int:
        return self[name] if name in self._values else default
