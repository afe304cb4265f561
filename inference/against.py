"""The same steps on two devices: where they part.

Each step of the second device gets what it got on the first, so that an error is the step's own and
not what came of those before. Beside that both run the model on their own, and the logits are
compared: what a user would see.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OpenCLError
from ..harness.compare import compare
from ..harness.operation import label_of
from ..kernels.types import Array
from .conversions import tensor_of
from .exam import Effort, Progress, passes_of
from .launch_view import Cleared, LaunchView
from .plan import BoundStep, Plan
from .step_check import own_positions

if TYPE_CHECKING:
    from .engine import Engine

#: What is fed, as in a check.
PASSES = Effort().passes


@dataclass(frozen=True)
class Difference:
    """One step on both devices. ``error`` is the relative L2 difference of what they wrote, None
    where one was not finite; ``allowed`` that of two kernels that may each be off.

    Beyond it ``errors`` are those of the first and the second against the reference.
    """

    op: str
    variants: tuple[str, str]
    workload: str
    place: str
    error: float | None
    allowed: float
    ok: bool
    errors: tuple[float | None, float | None] | None = None


@dataclass(frozen=True)
class Answer:
    """The logits of both devices on their own, after ``positions``."""

    positions: int
    error: float | None
    same_pick: bool


@dataclass
class Comparison:
    """What came of a comparison; ``unmatched`` steps are of one device alone: pieces of matrices
    that its limits ask for, and conversions."""

    model: str
    devices: tuple[str, str]
    steps: list[Difference] = field(default_factory=list)
    logits: list[Answer] = field(default_factory=list)
    unmatched: int = 0

    @property
    def first(self) -> Difference | None:
        """The first step beyond what is allowed."""
        return next((step for step in self.steps if not step.ok), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "device": self.devices[0],
            "against": self.devices[1],
            "ok": self.first is None,
            "first": self.first and asdict(self.first),
            "logits": [asdict(answer) for answer in self.logits],
            "unmatched": self.unmatched,
            "steps": [asdict(step) for step in self.steps],
        }


def compare_devices(
    one: Engine, other: Engine, progress: Progress = lambda doing: None
) -> Comparison:
    """Run the same prompt on two engines of one model, step by step."""
    found = Comparison(one.config.name, (one.device.name, other.device.name))
    passes = passes_of(one, PASSES, min(one.runner.limit, other.runner.limit))
    _own_ways(one, other, passes, found, progress)
    recorder = _Recorder(one)
    follower = _Follower(other, recorder.plans, found)
    for runner in (one.runner, other.runner):
        runner.reset()
    one.runner.execute, other.runner.execute = recorder.walk, follower.walk
    try:
        for index, tokens in enumerate(passes):
            progress(f"step by step, pass {index + 1} of {len(passes)}")
            one.runner.feed(tokens)
            other.runner.feed(tokens)
    finally:
        for runner in (one.runner, other.runner):
            runner.execute = Plan.run
            runner.reset()
    return found


def _own_ways(
    one: Engine,
    other: Engine,
    passes: Sequence[Sequence[int]],
    found: Comparison,
    progress: Callable[[str], None],
) -> None:
    positions = 0
    for tokens in passes:
        progress("each on its own")
        positions += len(tokens)
        logits = []
        for engine in (one, other):
            engine.runner.feed(tokens)
            logits.append(engine.runner.logits())
        error = _difference(logits[0], logits[1])
        same = int(np.argmax(logits[0])) == int(np.argmax(logits[1]))
        found.logits.append(Answer(positions, error, same))


def _difference(a: Array, b: Array) -> float | None:
    error = float(np.linalg.norm(a.astype(np.float64) - b) / (np.linalg.norm(b) or 1.0))
    return error if isfinite(error) else None


@dataclass(frozen=True)
class _Record:
    """A step on the first device: which, with what, and what it wrote."""

    key: tuple[object, ...]
    bound: BoundStep
    outputs: dict[str, Array]


def _key(bound: BoundStep) -> tuple[object, ...]:
    """What a step does in the model, whatever its kernel reads it from."""
    names = {name: tensor_of(held) for name, held in bound.names.items()}
    return bound.workload.op, *sorted(names.items())


def _view(engine: Engine, bound: BoundStep, m: int) -> LaunchView:
    planner = engine.runner.planner
    start = int(planner.tensors["state"].read()[0])
    return LaunchView(
        bound.workload, bound.config, bound.names, planner.tensors, planner.resident.weights,
        start, m,
    )  # fmt: skip


def _launch(bound: BoundStep, m: int) -> None:
    bound.launch.enqueue(bound.geometry(m))
    bound.launch.program.context.finish()
    bound.launch.program.launched = True


def _written(view: LaunchView) -> dict[str, Array]:
    return {n: view.shaped(n, view.content(n)[: view.count(n)]) for n in view.outputs}


class _Recorder:
    """Runs the first device's plans and keeps what each step wrote."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.cleared = engine, Cleared()
        self.plans: deque[list[_Record]] = deque()

    def walk(self, plan: Plan, m: int) -> None:
        records = []
        self.cleared.clear(plan.steps, self.engine.runner.planner.tensors)
        for bound in plan.steps:
            view = _view(self.engine, bound, m)
            _launch(bound, m)
            records.append(_Record(_key(bound), bound, _written(view)))
        self.plans.append(records)


class _Follower:
    """Runs the second device's plans, each step on what the first device had."""

    def __init__(self, engine: Engine, plans: deque[list[_Record]], found: Comparison) -> None:
        self.engine, self.plans, self.found = engine, plans, found
        self.cleared = Cleared()

    def walk(self, plan: Plan, m: int) -> None:
        records = self.plans.popleft()
        self.cleared.clear(plan.steps, self.engine.runner.planner.tensors)
        matcher = SequenceMatcher(
            None, [r.key for r in records], [_key(b) for b in plan.steps], autojunk=False
        )
        partner = {
            block.b + i: records[block.a + i]
            for block in matcher.get_matching_blocks()
            for i in range(block.size)
        }
        self.found.unmatched += len(records) + len(plan.steps) - 2 * len(partner)
        for index, bound in enumerate(plan.steps):
            self._step(bound, m, partner.get(index))

    def _step(self, bound: BoundStep, m: int, record: _Record | None) -> None:
        view = _view(self.engine, bound, m)
        inputs = view.inputs()
        try:
            _launch(bound, m)
        except OpenCLError as error:
            label = label_of(bound.workload, bound.config)
            raise OpenCLError(f"{label}, {view.place}: {error}") from error
        if record is None:
            return
        self.found.steps.append(self._compared(bound, view, record, inputs))
        view.write(record.outputs)

    def _compared(
        self, bound: BoundStep, view: LaunchView, record: _Record, inputs: dict[str, Array]
    ) -> Difference:
        spec, own = view.spec, own_positions

        def logical(raw: dict[str, Array]) -> dict[str, Array]:
            return own(spec.outputs(view.workload, raw), view.start)

        mine, theirs = logical(_written(view)), logical(record.outputs)
        allowed = 2 * spec.tolerance(view.workload)
        verdict = compare(mine, theirs, allowed)
        errors = None
        if not verdict.ok:
            reference = own(view.reference(inputs), view.start)
            both = (compare(outputs, reference, allowed).error for outputs in (theirs, mine))
            first, second = (error if isfinite(error) else None for error in both)
            errors = (first, second)
        return Difference(
            op=bound.workload.op,
            variants=(record.bound.config.variant, bound.config.variant),
            workload=str(bound.workload),
            place=view.place,
            error=verdict.error if isfinite(verdict.error) else None,
            allowed=allowed,
            ok=verdict.ok,
            errors=errors,
        )
