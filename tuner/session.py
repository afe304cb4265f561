"""A tuning run: trials for a model's workloads, most promising first, kept as they come."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..cache.rows import DriverRow
from ..cache.store import Store
from ..harness.rules import read_rules
from ..kernels import SPECS
from ..kernels.types import Config
from ..kernels.uses import Use
from ..kernels.variants import VariantRequest
from ..runtime.device import DeviceInfo
from .alive import check_alive, is_doubtful
from .levels import Level
from .permitted import Permitted
from .process import Worker
from .record import Record
from .roofs import ROOF_USES, fitted, read_roof, write_roof
from .search import Search
from .tasks import Group, Task, allowance, groups_of
from .trial import Outcome
from .wanted import Wanted
from .warm import WarmStarts

#: Trials that a roof gets: it is a yardstick, not a kernel that anybody runs.
ROOF_TRIALS = 5
#: Share of the time that goes into timing leaders again (of a fixed time where there is no limit).
CONFIRM_SHARE, CONFIRM_SECONDS = 0.25, 120.0
CONFIRM_ROUNDS, CONFIRM_LEADERS = 3, 2
#: Trials in a row without a gain after which progress counts a kernel as done.
SETTLED = 4
#: What a trial takes on the devices measured, nearly all of it compiling; for estimates only.
SECONDS_PER_TRIAL = 0.5
#: Most promising task first, but a workload within this share of its roof is done.
NEAR_ROOF = 0.97


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    ``kernels_done``: nothing is left to try, or nothing was gained for some time. ``speedup`` is
    default over best, over all kernels with both known.
    """

    trials: int
    kernels_done: int
    kernels: int
    speedup: float
    roof_share: float | None
    seconds: float
    seconds_left: float | None
    doing: str


@dataclass
class TuneResult:
    """What a run did. ``defaults`` holds binaries of the safe defaults by program key."""

    trials: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    already_done: bool = False
    restarts: int = 0
    defaults: dict[str, tuple[str, bytes]] = field(default_factory=dict, repr=False)


class TuningRun:
    """Tunes ``uses`` for one device and writes into ``store``.

    ``seconds`` limits the run as well as the level's own time. ``force`` forgets earlier trials,
    but for what was chosen: that is timed anew first. ``others`` are uses of the same weights that
    this run does not search: what is known of them counts when a layout is chosen, and a layout
    that they were never tried in costs them a trial. ``reach`` is for more uses than there may be
    time for, most useful first: the share of the search's time that goes into first trials; groups
    not reached by then are left for another run.
    ``progress`` is called after every trial. Everything found is in the store when a method
    returns or raises, a ``KeyboardInterrupt`` included.
    """

    def __init__(
        self,
        store: Store,
        info: DeviceInfo,
        uses: Sequence[Use],
        level: Level,
        *,
        others: Sequence[Use] = (),
        seconds: float | None = None,
        force: bool = False,
        variants: VariantRequest | None = None,
        run: int | None = None,
        reach: float | None = None,
        progress: Callable[[Progress], None] = lambda progress: None,
        seed: int = 0,
    ) -> None:
        self.store, self.info, self.level, self.force = store, info, level, force
        self.progress, self.seed, self.reach = progress, seed, reach
        self.variants = variants or VariantRequest()
        rules = read_rules(store, info.driver_key).under(self.variants)
        self.permitted = Permitted(info, rules, self.variants, [*uses, *others])
        self.record = Record(store, info.driver_key, str(self.variants), run)
        limits = [s for s in (level.seconds, seconds) if s is not None]
        self.budget = min(limits) if limits else None
        self.roof = read_roof(store, info.driver_key)
        self.warm = WarmStarts(store, info.driver_key, self.permitted.allows)
        self.result = TuneResult()
        self._start = time.monotonic()
        self.tasks = [self._task(use, force) for use in uses]
        #: Also what shows that a device still works, where no workload has a result yet.
        roof_uses, anew = [fitted(use, info) for use in ROOF_USES], not self.roof.flops_per_s
        self.roof_tasks = [self._task(use, force and anew) for use in roof_uses]
        self.groups = groups_of([*self.tasks, *self._companions(others)])
        self._group = {task.workload: group for group in self.groups for task in group.tasks}
        self._wanted = Wanted(lambda use: self._task(use, force))

    # -- the run -----------------------------------------------------------------------------------

    def run(self) -> TuneResult:
        """Search until the time is over or nothing is left to try."""
        self._start = time.monotonic()
        self.store.put_driver(DriverRow(self.info.driver_key, self.info.as_dict()))
        if self.force:
            self.record.mark_open(self.tasks)
        with Worker(self.info.driver_key) as worker:
            try:
                self._roofs(worker)
                self._baseline(worker)
                finished = self._search(worker)
                self._confirm(worker)
                self._settle(worker)
            finally:
                self.result.restarts = worker.restarts
                self.result.seconds = time.monotonic() - self._start
        if finished or self.budget == self.level.seconds:
            for group in self.groups:
                self.record.write_group(group, complete=True)
            self.record.mark_done(self.tasks, self.level)
        return self.result

    def _roofs(self, worker: Worker) -> None:
        if self.roof.flops_per_s:
            return
        for task in self.roof_tasks:
            while task.new_trials < ROOF_TRIALS and self._next(worker, task):
                pass
        self.roof = write_roof(self.store, self.info.driver_key, self.roof_tasks)

    def _baseline(self, worker: Worker) -> None:
        """The safe default of every workload, heaviest first: something to beat, and to fall to.

        Ahead of it what was chosen before or is borrowed from a similar workload: no run that is
        cut short may replace it by a default.
        """
        if self.reach is not None and self.budget is not None:
            self._reach(worker, self.reach, self.budget)
            return
        self._first(worker, sorted(self.tasks, key=lambda t: -t.use.cost(t.spec.flops(t.workload))))

    def _reach(self, worker: Worker, share: float, budget: float) -> None:
        """The baseline group by group, in the order of the uses, as far as ``share`` goes."""
        now = time.monotonic()
        deadline = now + share * (self._start + (1 - CONFIRM_SHARE) * budget - now)
        own = {task.workload for task in self.tasks}
        for place, group in enumerate(self.groups):
            if place and time.monotonic() >= deadline:
                self.groups = self.groups[:place]
                self._group = {t.workload: group for group in self.groups for t in group.tasks}
                self.tasks = [task for task in self.tasks if task.workload in self._group]
                return
            self._first(worker, [task for task in group.tasks if task.workload in own])

    def _first(self, worker: Worker, tasks: Iterable[Task]) -> None:
        for task in tasks:
            for config in filter(None, (task.inherited, task.safe)):
                if self._time_over():
                    return
                if task.search.is_new(config):
                    self._try(worker, task, config)

    def _search(self, worker: Worker) -> bool:
        """Trial after trial where most is to be gained; True if nothing was left to try."""
        while not self._time_over(1 - CONFIRM_SHARE):
            self._want_conversions()
            if (gap := self._gap()) is not None:
                self._try(worker, *gap)
                continue
            open_tasks = [task for task in self.tasks if self._open(task)]
            if not open_tasks:
                return True
            task = max(open_tasks, key=lambda t: (t.promise(self.roof), str(t.workload)))
            if not self._next(worker, task):
                task.exhausted = True
        return False

    def _confirm(self, worker: Worker) -> None:
        """Time the leaders again, in turns with each other and the default, costliest first.

        The quickest of many noisy measurements is often the luckiest; a median of several is not.
        """
        deadline = time.monotonic() + CONFIRM_SHARE * (self.budget or CONFIRM_SECONDS)
        for _ in range(CONFIRM_ROUNDS):
            for task in sorted(self.tasks, key=lambda t: -t.use.cost(t.best_time() or 0.0)):
                chosen = self._group[task.workload].chosen().get(task.workload)
                if chosen is None or not task.new_trials:
                    continue
                ranking = task.ranking(task.layout(chosen[0]))[:CONFIRM_LEADERS]
                configs = dict.fromkeys(config for config, _ in ranking)
                if task.default_time is not None:
                    configs[task.safe] = None
                if len(configs) < 2:
                    continue
                for config in configs:
                    if time.monotonic() > deadline:
                        return
                    self._try(worker, task, config)

    def _settle(self, worker: Worker) -> None:
        """See to it that everything chosen is written with its binary, even past the budget, and
        so is every conversion that it needs."""
        self._want_conversions()
        for task in self._wanted.untimed():
            self._try(worker, task, task.safe)
        for group in self.groups:
            self.record.write_group(group)
            for task, (config, seconds) in group.choices():
                if self.record.has_binary(task, config) or self.record.keep_binary(task, config):
                    continue
                # An earlier run chose it, and its program was cleared since.
                outcome = self._ask(worker, task, config, seconds)
                self.record.keep_binary(task, config, outcome.binary)
        self.record.drop_superseded()

    # -- single trials ---------------------------------------------------------------------------

    def _next(self, worker: Worker, task: Task) -> bool:
        config = self.warm.running(task, self.tasks) or task.search.ask()
        if config is None:
            return False
        self._try(worker, task, config)
        return True

    def _try(self, worker: Worker, task: Task, config: Config) -> None:
        """Run one trial and keep what came of it."""
        start = time.monotonic()
        outcome = self._ask(worker, task, config, task.best_time())
        task.seconds += time.monotonic() - start
        task.new_trials += 1
        self.result.trials += 1
        statuses = self.result.by_status
        statuses[outcome.status] = statuses.get(outcome.status, 0) + 1
        self.record.add(task, config, outcome)
        seconds = outcome.time if outcome.status == "ok" else None
        if task.search.is_new(config) or seconds is None:
            task.search.tell(config, seconds)
        before = task.best_time()
        if config == task.safe and outcome.binary:
            self.result.defaults[outcome.key] = (f"{task.workload} {config}", outcome.binary)
        task.note(config, seconds)
        if task.workload in self._group:
            self.record.write_group(self._group[task.workload])
        self.record.forget(task, task.leaders(CONFIRM_LEADERS))
        improved = seconds is not None and (before is None or seconds < 0.98 * before)
        task.idle = 0 if improved else task.idle + 1
        self.progress(self._progress(task))

    def _ask(self, worker: Worker, task: Task, config: Config, best: float | None) -> Outcome:
        """A trial's outcome, for which the candidate is to blame.

        Raises :class:`~clkiln.errors.TuningError` where it is the device.
        """
        outcome = worker.trial(
            task.workload, config, best, extra=allowance(task), made=task.conversions(config)
        )
        if is_doubtful(outcome):
            check_alive(worker, task, config, outcome, [*self.tasks, *self.roof_tasks])
        return outcome

    def _want_conversions(self) -> None:
        """Take up the conversions that what is chosen by now needs."""
        for task in self._wanted.update(self.groups):
            self.tasks.append(task)
            self.groups.append(Group([task]))
            self._group[task.workload] = self.groups[-1]

    # -- what is open ------------------------------------------------------------------------------

    def _open(self, task: Task) -> bool:
        if task.exhausted or not task.use.launches:
            return False
        if self.level.trials and task.search.tried >= self.level.trials:
            return False
        best = task.best_time()
        if self.level.seconds is None or best is None:
            return True
        return self.roof.seconds(task.spec, task.workload) < NEAR_ROOF * best

    def _gap(self) -> tuple[Task, Config] | None:
        for group in self.groups:
            gap = group.gap()
            if gap is not None:
                return gap
        return None

    def _time_over(self, share: float = 1.0) -> bool:
        return self.budget is not None and time.monotonic() - self._start >= share * self.budget

    # -- state -------------------------------------------------------------------------------------

    def _companions(self, others: Sequence[Use]) -> list[Task]:
        """Tasks of those ``others`` that share a group with a task and have a result."""
        groups = {task.use.group for task in self.tasks} - {None}
        found = [self._task(use, force=False) for use in others if use.group in groups]
        return [task for task in found if task.layouts]

    def _task(self, use: Use, force: bool) -> Task:
        spec, workload = SPECS[use.workload.op], use.workload
        permitted = self.permitted
        known = {} if force else self.record.known(workload, spec.digest())
        # What became infeasible since is no result any more.
        known = {c: times for c, times in known.items() if permitted.fits(workload, c)}
        tried = {c: statistics.median(times) if times else None for c, times in known.items()}
        old = self.record.inherited(workload, spec.digest(), own=force)
        if old and not permitted.allows(workload, old):
            old = None
        if old is None and not known:
            old = self.warm.filed(workload)
        starts = spec.starts(workload, self.info)
        search = Search(
            spec, workload, self.info, kind=permitted.kind(workload), rules=permitted.rules,
            starts=starts, tried=tried, seed=self.seed,
        )  # fmt: skip
        task = Task(use, search, permitted.safe(workload), inherited=old)
        for config, times in known.items():
            for seconds in times if permitted.allows(workload, config) else ():
                task.note(config, seconds)
        return task

    def _progress(self, task: Task) -> Progress:
        tasks = [t for t in self.tasks if t.best_time() and t.default_time]
        default = sum(t.use.cost(t.default_time or 0) for t in tasks)
        best = sum(t.use.cost(t.best_time() or 0) for t in tasks)
        floor = sum(t.use.cost(self.roof.seconds(t.spec, t.workload)) for t in tasks)
        seconds = time.monotonic() - self._start
        return Progress(
            trials=self.result.trials,
            kernels_done=sum(t.idle >= SETTLED or not self._open(t) for t in tasks),
            kernels=len(self.tasks),
            speedup=default / best if best else 1.0,
            roof_share=floor / best if best and floor else None,
            seconds=seconds,
            seconds_left=None if self.budget is None else max(0.0, self.budget - seconds),
            doing=str(task.workload),
        )
