"""Conversions as tasks of a tuning run: those that what is chosen needs, as long as it does.

A configuration was charged with the time of the conversion's safe configuration
(:mod:`.convert`). Once it is chosen, the conversion is a workload like any other, launched as often
as what needs it: it is timed, searched as far as that promises anything, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from ..kernels.types import Workload
from ..kernels.uses import Use
from .tasks import Group, Task


class Wanted:
    """The conversions of a run; ``new`` makes a task of a use."""

    def __init__(self, new: Callable[[Use], Task]) -> None:
        self._new = new
        self.tasks: dict[Workload, Task] = {}

    def update(self, groups: Iterable[Group]) -> list[Task]:
        """Count how often what ``groups`` chose launches each; the tasks that are new.

        What nothing needs any more counts as launched never.
        """
        uses = conversion_uses(groups)
        fresh = [self._new(use) for workload, use in uses.items() if workload not in self.tasks]
        self.tasks |= {task.workload: task for task in fresh}
        for workload, task in self.tasks.items():
            task.use = uses.get(workload) or replace(task.use, launches=0)
        return fresh

    def untimed(self) -> list[Task]:
        """Tasks of conversions that are needed and have no result."""
        return [task for task in self.tasks.values() if task.use.launches and not task.layouts]


def conversion_uses(groups: Iterable[Group]) -> dict[Workload, Use]:
    """The conversions that the choices of ``groups`` need, each as often as its readers run."""
    found: dict[Workload, Use] = {}
    for group in groups:
        for task, (config, _) in group.choices():
            for workload in task.spec.conversions(task.workload, config).values():
                known = found.get(workload)
                launches = task.use.launches + (known.launches if known else 0)
                steps = max(task.use.steps, known.steps if known else 0.0)
                found[workload] = Use(workload, task.use.phase, launches, steps)
    return found
