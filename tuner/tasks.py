"""What is known of each workload while tuning, and how workloads of one weight are chosen."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..kernels import SPECS
from ..kernels.spec import KernelSpec
from ..kernels.types import Config, Workload
from ..kernels.uses import Use
from .search import Search


@dataclass(frozen=True)
class Roof:
    """What the device can do: bytes read and float32 operations, per second; None if unknown."""

    bytes_per_s: float | None = None
    flops_per_s: float | None = None

    def seconds(self, spec: KernelSpec, workload: Workload) -> float:
        """The least time a workload can take; 0 while nothing is known."""
        memory = spec.bytes(workload) / self.bytes_per_s if self.bytes_per_s else 0.0
        arithmetic = spec.flops(workload) / self.flops_per_s if self.flops_per_s else 0.0
        return max(memory, arithmetic)


@dataclass
class Task:
    """One workload's search. ``layouts`` holds the best (configuration, seconds) of each layout.

    ``safe`` is the default, ``inherited`` what was chosen before: under another driver, ahead of a
    search that begins anew, or for the nearest other workload. A configuration that was timed
    several times counts with its median.
    """

    use: Use
    search: Search
    safe: Config
    inherited: Config | None = None
    layouts: dict[str, tuple[Config, float]] = field(default_factory=dict)
    new_trials: int = 0
    seconds: float = 0.0
    idle: int = 0
    exhausted: bool = False
    _samples: dict[str, dict[Config, list[float]]] = field(default_factory=dict)

    @property
    def workload(self) -> Workload:
        return self.use.workload

    @property
    def spec(self) -> KernelSpec:
        return SPECS[self.use.workload.op]

    @property
    def digest(self) -> str:
        return self.spec.digest()

    @property
    def default_time(self) -> float | None:
        """Seconds of the safe default; None if it was not timed or failed."""
        times = self._samples.get(self.layout(self.safe), {}).get(self.safe)
        return statistics.median(times) if times else None

    def layout(self, config: Config) -> str:
        return self.spec.layout(self.workload, config) or ""

    def conversions(self, config: Config) -> dict[Workload, Config]:
        """What makes the images that ``config`` reads: what the rules leave of each conversion."""
        search = self.search
        found = search.rules.conversions(self.workload, config, search.limits)
        return dict(found.values())

    def note(self, config: Config, time: float | None) -> None:
        """Take the result of a trial into account, None for a failed one.

        What failed once is out, whatever it did before.
        """
        layout = self.layout(config)
        if time is None:
            self._samples.get(layout, {}).pop(config, None)
        else:
            self._samples.setdefault(layout, {}).setdefault(config, []).append(time)
        ranking = self.ranking(layout)
        if ranking:
            self.layouts[layout] = ranking[0]
        else:
            self.layouts.pop(layout, None)

    def ranking(self, layout: str) -> list[tuple[Config, float]]:
        """What worked in ``layout``, best first."""
        samples = self._samples.get(layout, {}).items()
        medians = [(config, statistics.median(times)) for config, times in samples]
        return sorted(medians, key=lambda pair: (pair[1], str(pair[0])))

    def leaders(self, count: int) -> set[Config]:
        """The safe default and the best few of each layout."""
        best = {c for layout in self.layouts for c, _ in self.ranking(layout)[:count]}
        return best | {self.safe}

    def best_time(self) -> float | None:
        return min((time for _, time in self.layouts.values()), default=None)

    def promise(self, roof: Roof) -> float:
        """What a second of further trials may save of a typical request.

        It fades with trials that brought nothing, and counts what a trial of this workload costs:
        some compile for seconds.
        """
        best = self.best_time()
        if best is None:
            return float("inf") if self.search.tried < 3 else 0.0
        share = min(1.0, roof.seconds(self.spec, self.workload) / best)
        trial = self.seconds / self.new_trials if self.new_trials else 1.0
        return self.use.cost(best) * max(0.0, 1.0 - share) * 0.88**self.idle / trial


def allowance(task: Task) -> float:
    """Seconds that a trial gets beyond the limit: large inputs and references take their time."""
    return task.spec.bytes(task.workload) / 20e6


class Group:
    """Tasks that are chosen together: all that read one weight, or a single one without weights."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)

    def chosen(self) -> dict[Workload, tuple[Config, float]]:
        """The configuration of each task in the layout that is best for all together.

        Only layouts in which every task has a result count; while there is none, each task's own
        best stands.
        """
        layouts = self._complete()
        if not layouts:
            return {
                task.workload: min(task.layouts.values(), key=lambda pair: pair[1])
                for task in self.tasks
                if task.layouts
            }
        best = min(layouts, key=lambda layout: (self._cost(layout), layout))
        return {task.workload: task.layouts[best] for task in self.tasks}

    def gap(self) -> tuple[Task, Config] | None:
        """A trial that would let a promising layout compete: a task without a result in it.

        A layout is promising if the group would be quicker in it than in the present one, taking
        for tasks not tried in it their best time elsewhere.
        """
        if len(self.tasks) < 2 or not all(task.layouts for task in self.tasks):
            return None
        complete = self._complete()
        present = min(map(self._cost, complete), default=float("inf"))
        candidates = [
            (self._hope(layout), layout)
            for layout in {layout for task in self.tasks for layout in task.layouts}
            if layout not in complete
        ]
        for hope, layout in sorted(candidates):
            if hope >= 0.97 * present:
                break
            for task in sorted(self.tasks, key=lambda t: -t.use.cost(t.best_time() or 0.0)):
                if layout not in task.layouts:
                    config = transplant(task, layout)
                    if config is not None:
                        return task, config
        return None

    def choices(self) -> list[tuple[Task, tuple[Config, float]]]:
        """Each task that has a result, with its chosen configuration and seconds."""
        chosen = self.chosen()
        return [(t, chosen[t.workload]) for t in self.tasks if t.workload in chosen]

    def cost(self) -> float:
        """Seconds of a typical request that go into the group as chosen."""
        return sum(task.use.cost(seconds) for task, (_, seconds) in self.choices())

    def _complete(self) -> list[str]:
        names = set.intersection(*(set(task.layouts) for task in self.tasks))
        return sorted(names)

    def _cost(self, layout: str) -> float:
        return sum(task.use.cost(task.layouts[layout][1]) for task in self.tasks)

    def _hope(self, layout: str) -> float:
        total = 0.0
        for task in self.tasks:
            known = task.layouts.get(layout)
            total += task.use.cost(known[1] if known else task.best_time() or 0.0)
        return total


def transplant(task: Task, layout: str) -> Config | None:
    """An untried configuration in ``layout`` that is as close as can be to the task's best.

    None if there is none that is feasible and untried.
    """
    best = task.search.best
    space: Iterable[Config] = task.search.feasible or []
    fitting = [
        config for config in space if task.search.is_new(config) and task.layout(config) == layout
    ]
    if not fitting or best is None:
        return None
    wanted = dict(best[0].params)

    def distance(config: Config) -> tuple[int, str]:
        return sum(wanted.get(n) != v for n, v in config.params), str(config)

    return min(fitting, key=distance)


def groups_of(tasks: Iterable[Task]) -> list[Group]:
    """Tasks joined by their uses' ``group``."""
    joined: dict[str, list[Task]] = {}
    for task in tasks:
        joined.setdefault(task.use.group or str(task.workload), []).append(task)
    return [Group(members) for members in joined.values()]
