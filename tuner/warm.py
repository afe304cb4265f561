"""Warm starts: what was best for the nearest workload of the same operation is tried first."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..cache.store import Store
from ..harness.keys import read_config
from ..kernels import SPECS
from ..kernels.near import nearest
from ..kernels.types import Config, Workload
from .tasks import Task

Fits = Callable[[Workload, Config], bool]


class WarmStarts:
    """Configurations to borrow, from the cache file and from the tasks of this run.

    ``fits`` says whether a configuration can run a workload on this device and was allowed.
    """

    def __init__(self, store: Store, driver: str, fits: Fits) -> None:
        self._fits = fits
        self._filed: dict[str, list[tuple[Workload, Config]]] = {}
        for row in store.best_rows(driver=driver):
            config, spec = read_config(row.config), SPECS.get(row.workload.split(" ")[0])
            if config is None or spec is None or spec.digest() != row.digest:
                continue
            try:
                workload = Workload.parse(row.workload)
            except ValueError:
                continue
            self._filed.setdefault(workload.op, []).append((workload, config))

    def filed(self, workload: Workload) -> Config | None:
        """What the cache file held for the nearest other workload when this run began.

        It is what an engine borrows for ``workload`` while nothing better is known, so a run must
        not choose anything else before it has timed it.
        """
        return self._borrow(workload, self._filed.get(workload.op, []))

    def running(self, task: Task, tasks: Iterable[Task]) -> Config | None:
        """What the nearest other task found to be better than its default, if it is new here."""
        found: list[tuple[Workload, Config]] = []
        for other in tasks:
            if other.workload.op == task.workload.op and other.layouts:
                best, _ = min(other.layouts.values(), key=lambda pair: pair[1])
                if best != other.safe:
                    found.append((other.workload, best))
        config = self._borrow(task.workload, found)
        return config if config is not None and task.search.is_new(config) else None

    def _borrow(
        self, workload: Workload, found: Iterable[tuple[Workload, Config]]
    ) -> Config | None:
        others = [(other, config) for other, config in found if other != workload]
        near = (config for _, config in nearest(workload, others) if self._fits(workload, config))
        return next(near, None)
