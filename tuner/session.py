"""A tuning run: trials for a model's workloads, most promising first, kept as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..cache.rows import BestRow, DriverRow, TrialRow
from ..cache.store import Store
from ..kernels import SPECS
from ..kernels.types import Config, Workload
from ..kernels.uses import Use
from ..kernels.variants import VariantRequest, choice_fact
from ..runtime.device import DeviceInfo
from ..runtime.program import program_key
from .levels import LEVELS, Level
from .process import Worker
from .roofs import ROOF_USES, read_roof, write_roof
from .search import Search
from .tasks import Group, Task, groups_of
from .trial import Outcome

#: Trials that a roof gets: it is a yardstick, not a kernel that anybody runs.
ROOF_TRIALS = 5
#: Share of the time that goes into timing leaders again (of a fixed time where there is no limit).
CONFIRM_SHARE, CONFIRM_SECONDS = 0.25, 120.0
CONFIRM_ROUNDS, CONFIRM_LEADERS = 3, 2
#: What a trial takes on the devices measured, nearly all of it compiling; for estimates only.
SECONDS_PER_TRIAL = 0.5
#: Most promising task first, but a workload within this share of its roof is done.
NEAR_ROOF = 0.97


@dataclass(frozen=True)
class Progress:
    """How far a run is. ``speedup`` is default over best, over all kernels with both known."""

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

    ``seconds`` limits the run as well as the level's own time. ``force`` forgets earlier trials.
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
        seconds: float | None = None,
        force: bool = False,
        variants: VariantRequest | None = None,
        run: int | None = None,
        progress: Callable[[Progress], None] = lambda progress: None,
        seed: int = 0,
    ) -> None:
        self.store, self.info, self.level, self.run_id = store, info, level, run
        self.progress, self.seed = progress, seed
        self.variants = variants or VariantRequest()
        #: What ``--variant`` asked for: then the choice is kept beside the free one.
        self.requested = str(self.variants)
        limits = [s for s in (level.seconds, seconds) if s is not None]
        self.budget = min(limits) if limits else None
        self.roof = read_roof(store, info.driver_key)
        self.result = TuneResult()
        self._start = time.monotonic()
        #: Programs that this run wrote or found chosen; what is not chosen at its end is dropped.
        self._kept: set[str] = set()
        self.tasks = [self._task(use, force) for use in uses]
        self.roof_tasks = [] if self.roof.flops_per_s else [self._task(u, force) for u in ROOF_USES]
        self.groups = groups_of(self.tasks)
        self._group = {task.workload: group for group in self.groups for task in group.tasks}
        self._written: dict[Workload, str] = {}
        self._binaries: dict[tuple[Workload, Config], bytes] = {}

    # -- the run -----------------------------------------------------------------------------------

    def run(self) -> TuneResult:
        """Search until the time is over or nothing is left to try."""
        self._start = time.monotonic()
        self.store.put_driver(DriverRow(self.info.driver_key, self.info.as_dict()))
        with Worker(self.info.driver_key) as worker:
            try:
                self._roofs(worker)
                self._baseline(worker)
                self._search(worker)
                self._confirm(worker)
                self._settle(worker)
            finally:
                self.result.restarts = worker.restarts
                self.result.seconds = time.monotonic() - self._start
        self._mark_done()
        return self.result

    def _roofs(self, worker: Worker) -> None:
        for task in self.roof_tasks:
            while task.new_trials < ROOF_TRIALS and self._next(worker, task):
                pass
        if self.roof_tasks:
            self.roof = write_roof(self.store, self.info.driver_key, self.roof_tasks)

    def _baseline(self, worker: Worker) -> None:
        """The safe default of every workload, heaviest first: something to beat, and to fall to."""
        order = sorted(self.tasks, key=lambda t: -t.use.cost(t.spec.flops(t.workload)))
        for task in order:
            if task.search.is_new(task.safe):
                self._try(worker, task, task.safe)

    def _search(self, worker: Worker) -> None:
        while not self._time_over(1 - CONFIRM_SHARE):
            if (gap := self._gap()) is not None:
                self._try(worker, *gap)
                continue
            open_tasks = [task for task in self.tasks if self._open(task)]
            if not open_tasks:
                return
            task = max(open_tasks, key=lambda t: (t.gain(self.roof), str(t.workload)))
            if not self._next(worker, task):
                task.exhausted = True

    def _confirm(self, worker: Worker) -> None:
        """Time the leaders again, in turns with each other and the default, costliest first.

        The quickest of many noisy measurements is often the luckiest; a median of several is not.
        """
        deadline = time.monotonic() + CONFIRM_SHARE * (self.budget or CONFIRM_SECONDS)
        order = sorted(self.groups, key=lambda group: -group.cost())
        tasks = [task for group in order for task in group.tasks]
        for _ in range(CONFIRM_ROUNDS):
            for task in sorted(tasks, key=lambda t: -t.use.cost(t.best_time() or 0.0)):
                chosen = self._group[task.workload].chosen().get(task.workload)
                if chosen is None or not task.new_trials:
                    continue
                ranking = task.ranking(task.layout(chosen[0]))[:CONFIRM_LEADERS]
                configs = dict.fromkeys([config for config, _ in ranking] + [task.safe])
                if len(configs) < 2:
                    continue
                for config in configs:
                    if time.monotonic() > deadline:
                        return
                    self._try(worker, task, config)

    def _settle(self, worker: Worker) -> None:
        """See to it that everything chosen is written with its binary, even past the budget."""
        for group in self.groups:
            self._write_group(group)
            self._write_binaries(worker, group)
        if not self.requested:
            chosen = {self._key(t, c) for g in self.groups for t, (c, _) in g.choices()}
            self.store.drop_binaries(self._kept - chosen)

    # -- single trials ---------------------------------------------------------------------------

    def _next(self, worker: Worker, task: Task) -> bool:
        config = task.search.ask()
        if config is None:
            return False
        self._try(worker, task, config)
        return True

    def _try(self, worker: Worker, task: Task, config: Config) -> None:
        """Run one trial and keep what came of it."""
        extra = task.spec.bytes(task.workload) / 20e6
        outcome = worker.trial(task.workload, config, task.best_time(), extra=extra)
        task.new_trials += 1
        self.result.trials += 1
        statuses = self.result.by_status
        statuses[outcome.status] = statuses.get(outcome.status, 0) + 1
        self.store.add_trial(self._row(task, config, outcome))
        seconds = outcome.time if outcome.status == "ok" else None
        if task.search.is_new(config):
            task.search.tell(config, seconds)
        before = task.best_time()
        if config == task.safe and outcome.binary:
            self.result.defaults[outcome.key] = (f"{task.workload} {config}", outcome.binary)
        if outcome.binary:
            self._binaries[task.workload, config] = outcome.binary
        task.note(config, seconds)
        if task.workload in self._group:
            self._write_group(self._group[task.workload])
        improved = seconds is not None and (before is None or seconds < 0.98 * before)
        task.idle = 0 if improved else task.idle + 1
        self.progress(self._progress(task))

    def _row(self, task: Task, config: Config, outcome: Outcome) -> TrialRow:
        return TrialRow(
            workload=str(task.workload),
            driver=self.info.driver_key,
            digest=task.digest,
            config=str(config),
            status=outcome.status,
            time=outcome.time,
            spread=outcome.spread,
            repeats=outcome.repeats,
            compile_time=outcome.compile_time,
            error=outcome.error if outcome.error != float("inf") else None,
            message=outcome.message,
            layout=task.spec.layout(task.workload, config),
            run=self.run_id,
        )

    # -- what is open ------------------------------------------------------------------------------

    def _open(self, task: Task) -> bool:
        if task.exhausted or (self.level.trials and task.search.tried >= self.level.trials):
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

    # -- state from and to the store ---------------------------------------------------------------

    def _task(self, use: Use, force: bool) -> Task:
        spec, workload = SPECS[use.workload.op], use.workload
        kind = self.variants.kind(workload.op)
        safe = spec.safe(workload, self.info)
        if kind is not None:
            safe = spec.safe_of_kind(workload, self.info, kind) or safe
        tried = {} if force else self._known(workload, spec.digest())
        starts = [*spec.starts(workload, self.info)]
        old = self.store.best_of_other_driver(str(workload), spec.digest(), self.info.driver_key)
        if old is not None:
            starts.insert(0, _config(old.config) or safe)
        search = Search(
            spec, workload, self.info, kind=kind, starts=starts, tried=tried, seed=self.seed
        )
        task = Task(use, search, safe)
        before = self.store.best(str(workload), self.info.driver_key, spec.digest())
        if before is not None and (config := _config(before.config)) is not None:
            self._kept.add(self._key(task, config))
        for config, seconds in tried.items():
            if self.variants.allows(workload.op, config):
                task.note(config, seconds)
        return task

    def _known(self, workload: Workload, digest: str) -> dict[Config, float | None]:
        """Results of earlier runs under this driver; a candidate's latest counts."""
        known: dict[Config, float | None] = {}
        for row in self.store.trials(
            workload=str(workload), driver=self.info.driver_key, digest=digest
        ):
            config = _config(row.config)
            if config is not None:
                known[config] = row.time if row.status == "ok" else None
        return known

    def _write_group(self, group: Group) -> None:
        """Write the rows and the binaries at hand of a group's choice, where they changed."""
        for task, (config, seconds) in group.choices():
            mark = f"{config} {seconds} {task.default_time}"
            if self._written.get(task.workload) == mark:
                continue
            self._keep_binary(task, config)
            if self.requested:
                name = choice_fact(self.requested, task.workload, task.digest)
                self.store.set_fact(name, str(config), driver=self.info.driver_key)
            else:
                self.store.set_best(
                    BestRow(
                        workload=str(task.workload),
                        driver=self.info.driver_key,
                        digest=task.digest,
                        config=str(config),
                        time=seconds,
                        default_time=task.default_time,
                        layout=task.spec.layout(task.workload, config),
                    )
                )
            self._written[task.workload] = mark

    def _key(self, task: Task, config: Config) -> str:
        return program_key(self.info.driver_key, task.spec.source(task.workload, config))

    def _keep_binary(self, task: Task, config: Config) -> bool:
        binary = self._binaries.get((task.workload, config))
        if not binary:
            return False
        self._put_binary(task, config, binary)
        return True

    def _put_binary(self, task: Task, config: Config, binary: bytes) -> None:
        key, label = self._key(task, config), f"{task.workload} {config}"
        self.store.put_binary(key, binary, label=label, driver=self.info.driver_key)
        self._kept.add(key)

    def _write_binaries(self, worker: Worker, group: Group) -> None:
        """Build again what an earlier run chose and whose binary is not in the file."""
        for task, (config, seconds) in group.choices():
            if self.store.get_binaries([self._key(task, config)]):
                continue
            if not self._keep_binary(task, config):
                outcome = worker.trial(task.workload, config, seconds)
                if outcome.binary:
                    self._put_binary(task, config, outcome.binary)

    def _mark_done(self) -> None:
        """Note that the level's own time was given, so that the next run need not."""
        if self.budget != self.level.seconds:
            return
        for task in self.tasks:
            name = done_fact(self.requested, task.workload, task.digest)
            self.store.set_fact(name, self.level.name, driver=self.info.driver_key)

    def _progress(self, task: Task) -> Progress:
        tasks = [t for t in self.tasks if t.best_time() and t.default_time]
        default = sum(t.use.cost(t.default_time or 0) for t in tasks)
        best = sum(t.use.cost(t.best_time() or 0) for t in tasks)
        floor = sum(t.use.cost(self.roof.seconds(t.spec, t.workload)) for t in tasks)
        seconds = time.monotonic() - self._start
        return Progress(
            trials=self.result.trials,
            kernels_done=len(tasks),
            kernels=len(self.tasks),
            speedup=default / best if best else 1.0,
            roof_share=floor / best if best and floor else None,
            seconds=seconds,
            seconds_left=None if self.budget is None else max(0.0, self.budget - seconds),
            doing=str(task.workload),
        )


def done_fact(requested: str, workload: Workload, digest: str) -> str:
    """Name of the fact that says at which level a workload was tuned to the end."""
    return f"tuned:{requested}:{digest}:{workload}"


def undone(
    store: Store,
    driver: str,
    uses: Sequence[Use],
    level: Level,
    variants: VariantRequest,
) -> list[Use]:
    """The uses that were not yet tuned to the end at ``level`` or a higher one."""
    facts = store.facts(driver)
    open_uses = []
    for use in uses:
        name = done_fact(str(variants), use.workload, SPECS[use.workload.op].digest())
        reached = LEVELS.get(str(facts.get((name, driver))))
        if reached is None or reached.rank < level.rank:
            open_uses.append(use)
    return open_uses


def _config(text: str) -> Config | None:
    try:
        return Config.parse(text)
    except ValueError:
        return None
