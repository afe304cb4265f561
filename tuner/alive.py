"""Whom to blame for a trial that went wrong while it ran: the candidate, or the device.

A candidate is only blamed where something else still works. What is known to have worked says most;
where nothing has worked yet, several safe defaults must fail before the device is given up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ..errors import TuningError
from ..harness.operation import label_of
from ..kernels.types import Config, Workload
from .process import HARMLESS
from .tasks import Task, allowance
from .trial import Outcome

#: How many that worked before are run again, and how many untried ones where none has worked.
WITNESSES, UNTRIED = 2, 3
#: Seconds that they get beyond a trial's limit: a machine that is busy is not dead.
PATIENCE = 30.0


class Trials(Protocol):
    """What runs trials: :class:`~clkiln.tuner.process.Worker`."""

    def trial(
        self,
        workload: Workload,
        config: Config,
        best: float | None,
        *,
        extra: float = 0.0,
        made: Mapping[Workload, Config] = ...,
    ) -> Outcome: ...


def is_doubtful(outcome: Outcome) -> bool:
    """Whether the device may be what failed. Its worker is gone then: the next one is fresh."""
    return outcome.status not in HARMLESS


def check_alive(
    worker: Trials, task: Task, config: Config, outcome: Outcome, tasks: Sequence[Task]
) -> None:
    """See that the device still works after ``outcome``, of ``config``.

    Runs what worked before, the safe default of ``task`` first, then of the others of ``tasks``.
    Raises :class:`~clkiln.errors.TuningError` where that fails, too.
    """
    witnesses = _witnesses(task, config, tasks)
    failures = []
    for witness, known in witnesses:
        failure = _failure(worker, witness, known)
        if not failure:
            return
        failures.append(f"{label_of(witness.workload, known)}: {failure}")
    if witnesses:
        raise TuningError(
            f"the device stopped working, and no candidate is blamed: "
            f"{label_of(task.workload, config)}: {outcome.status}, {outcome.message}; after it "
            f"{'; '.join(failures)}"
        )


def _witnesses(task: Task, config: Config, tasks: Sequence[Task]) -> list[tuple[Task, Config]]:
    others = sorted(
        (other for other in tasks if other is not task),
        key=lambda other: (other.spec.bytes(other.workload), str(other.workload)),
    )
    every = [task, *others]
    worked = [(t, known) for t in every if (known := _known(t, config if t is task else None))]
    if worked:
        return worked[:WITNESSES]
    untried = [(t, t.safe) for t in every if (t is not task or t.safe != config)]
    return [(t, safe) for t, safe in untried if t.search.is_new(safe)][:UNTRIED]


def _known(task: Task, doubted: Config | None) -> Config | None:
    """What of a task is known to work, beside ``doubted``: the safe default before others."""
    if task.default_time is not None and task.safe != doubted:
        return task.safe
    ranked = [pair for layout in task.layouts for pair in task.ranking(layout)]
    worked = [config for config, _ in sorted(ranked, key=lambda p: (p[1], str(p[0])))]
    return next((config for config in worked if config != doubted), None)


def _failure(worker: Trials, task: Task, config: Config) -> str:
    """How a trial of ``config`` went wrong; empty if the device did what it was asked."""
    try:
        # Nothing beats a best of no time: it is verified and hardly measured.
        extra = allowance(task) + PATIENCE
        made = task.conversions(config)
        outcome = worker.trial(task.workload, config, 0.0, extra=extra, made=made)
    except TuningError as error:
        return str(error)
    return f"{outcome.status}, {outcome.message}" if is_doubtful(outcome) else ""
