"""What a tuning run reads from and writes to the cache file."""

from __future__ import annotations

from collections.abc import Sequence

from ..cache.rows import BestRow, TrialRow
from ..cache.store import Store
from ..harness.keys import key_of, read_config
from ..harness.rules import read_rules
from ..kernels import SPECS
from ..kernels.types import Config, DeviceLimits, Workload
from ..kernels.uses import Use
from ..kernels.variants import VariantRequest, choice_fact
from ..runtime.program import program_key
from .levels import LEVELS, Level
from .tasks import Group, Task
from .trial import Outcome


class Record:
    """One run's place in the store: trials, choices, and the binaries of what is chosen.

    ``requested`` is what ``--variant`` asked for; then choices are kept beside the free ones.
    """

    def __init__(self, store: Store, driver: str, requested: str, run: int | None) -> None:
        self.store, self.driver, self.requested, self.run = store, driver, requested, run
        self._written: dict[Workload, str] = {}
        self._binaries: dict[tuple[Workload, Config], bytes] = {}
        #: Programs that this run wrote or found chosen; what nothing needs at its end is dropped.
        self._touched: set[str] = set()

    # -- trials --------------------------------------------------------------------------------

    def known(self, workload: Workload, digest: str) -> dict[Config, list[float]]:
        """Times of earlier runs under this driver; none for a configuration that ever failed."""
        known: dict[Config, list[float]] = {}
        failed: set[Config] = set()
        for row in self.store.trials(workload=str(workload), driver=self.driver, digest=digest):
            config = read_config(row.config)
            if config is None:
                continue
            if row.status == "ok" and row.time is not None:
                known.setdefault(config, []).append(row.time)
            else:
                failed.add(config)
        return {**known, **{config: [] for config in failed}}

    def inherited(self, workload: Workload, digest: str, *, own: bool) -> Config | None:
        """What was best under this driver (``own``), or else under another: to be timed first."""
        row = self.store.best(str(workload), self.driver, digest) if own else None
        row = row or self.store.best_of_other_driver(str(workload), digest, self.driver)
        return None if row is None else read_config(row.config)

    def add(self, task: Task, config: Config, outcome: Outcome) -> None:
        """Keep a trial; its binary is held until it is known to be needed."""
        self.store.add_trial(
            TrialRow(
                workload=str(task.workload),
                driver=self.driver,
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
                run=self.run,
            )
        )
        if outcome.binary:
            self._binaries[task.workload, config] = outcome.binary

    def forget(self, task: Task, kept: set[Config]) -> None:
        """Drop the held binaries of a task but for those of ``kept``."""
        for workload, config in list(self._binaries):
            if workload == task.workload and config not in kept:
                del self._binaries[workload, config]

    # -- choices ---------------------------------------------------------------------------------

    def write_group(self, group: Group, *, complete: bool = False) -> None:
        """Write a group's choices and the binaries at hand of them, where they changed.

        ``complete``: the search was given its level's whole time.
        """
        for task, (config, seconds) in group.choices():
            mark = f"{config} {seconds} {task.default_time} {complete}"
            if self._written.get(task.workload) == mark:
                continue
            self.keep_binary(task, config)
            if self.requested:
                name = choice_fact(self.requested, task.workload, task.digest)
                self.store.set_fact(name, str(config), driver=self.driver)
            else:
                self._write_best(task, config, seconds, complete)
            self._written[task.workload] = mark

    def _write_best(self, task: Task, config: Config, seconds: float, complete: bool) -> None:
        before = self.store.best(str(task.workload), self.driver, task.digest)
        replaced = None if before is None else read_config(before.config)
        if replaced is not None:
            self._touched.add(self._key(task, replaced))
        self.store.set_best(
            BestRow(
                workload=str(task.workload),
                driver=self.driver,
                digest=task.digest,
                config=str(config),
                time=seconds,
                default_time=task.default_time,
                layout=task.spec.layout(task.workload, config),
                complete=complete,
            )
        )

    def mark_done(self, tasks: Sequence[Task], level: Level) -> None:
        """Note that the level's own time was given, so that the next run need not."""
        for task in tasks:
            name = done_fact(self.requested, task.workload, task.digest)
            self.store.set_fact(name, level.name, driver=self.driver)

    def mark_open(self, tasks: Sequence[Task]) -> None:
        """Take back :meth:`mark_done`: a run that begins anew may be cut short."""
        done = {name for name, _ in self.store.facts(self.driver)}
        for task in tasks:
            name = done_fact(self.requested, task.workload, task.digest)
            if name in done:
                self.store.set_fact(name, "", driver=self.driver)

    # -- binaries --------------------------------------------------------------------------------

    def has_binary(self, task: Task, config: Config) -> bool:
        return bool(self.store.get_binaries([self._key(task, config)]))

    def keep_binary(self, task: Task, config: Config, binary: bytes = b"") -> bool:
        """Write the binary given or held; False if there is none."""
        binary = binary or self._binaries.get((task.workload, config), b"")
        if not binary:
            return False
        key, label = self._key(task, config), f"{task.workload} {config}"
        self.store.put_binary(key, binary, label=label, driver=self.driver)
        self._touched.add(key)
        return True

    def drop_superseded(self) -> None:
        """Delete the programs that this run wrote or replaced and that no choice needs."""
        if self.requested:
            return  # its choices lie beside the free ones, which may share programs
        chosen = [
            (r.workload, r.digest, r.config) for r in self.store.best_rows(driver=self.driver)
        ]
        for (name, _), value in self.store.facts(self.driver).items():
            parts = name.split(":", 3)
            if parts[0] == "choice" and len(parts) == 4:
                chosen.append((parts[3], parts[2], str(value)))
        needed = {self._program(*choice) for choice in chosen}
        self.store.drop_binaries({key for key in self._touched if key not in needed})

    def _program(self, workload: str, digest: str, config: str) -> str | None:
        """The key of a choice's program; None for one of another version of a kernel."""
        spec = SPECS.get(workload.split(" ")[0])
        if spec is None or spec.digest() != digest:
            return None
        return key_of(self.driver, workload, config)

    def _key(self, task: Task, config: Config) -> str:
        return program_key(self.driver, task.spec.source(task.workload, config))


def done_fact(requested: str, workload: Workload, digest: str) -> str:
    """Name of the fact that says at which level a workload was tuned to the end."""
    return f"tuned:{requested}:{digest}:{workload}"


def undone(
    store: Store,
    driver: str,
    uses: Sequence[Use],
    level: Level,
    variants: VariantRequest,
    *,
    limits: DeviceLimits | None = None,
) -> list[Use]:
    """The uses that were not yet tuned to the end at ``level`` or a higher one, and those whose
    winner was banned since, or what it can't do without on a device with ``limits``."""
    facts = store.facts(driver)
    rules = read_rules(store, driver).under(variants)

    def lost(use: Use) -> bool:
        """Whether the rules forbid what was chosen."""
        row = store.best(str(use.workload), driver, SPECS[use.workload.op].digest())
        config = None if row is None else read_config(row.config)
        return config is not None and not rules.allows(use.workload, config, limits)

    open_uses = []
    for use in uses:
        name = done_fact(str(variants), use.workload, SPECS[use.workload.op].digest())
        reached = LEVELS.get(str(facts.get((name, driver))))
        if reached is None or reached.rank < level.rank or (rules and lost(use)):
            open_uses.append(use)
    return open_uses


def reopen(store: Store, driver: str, op: str) -> None:
    """Let the next run search ``op`` again: it may try now what it was not allowed to."""
    for name, _ in store.facts(driver):
        parts = name.split(":", 3)
        if parts[0] == "tuned" and parts[-1].split(" ")[0] == op:
            store.set_fact(name, "", driver=driver)
