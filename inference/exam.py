"""One round of a check: a model's real plan on its device, launch by launch, against NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from ..errors import OpenCLError, OutOfDeviceMemory
from ..harness.compare import Verdict
from ..harness.often import Often
from ..harness.operation import label_of, source_of
from ..kernels import SPECS
from ..kernels.types import Array, Config, Workload
from .buckets import CHUNK, CONTEXTS, TOKENS, context_bucket, token_bucket
from .chain import Chain, logits_error
from .choose import Choice
from .conversions import conversions_of
from .exam_budget import FEWEST, Budget, weights_of
from .findings import Fault, Kind, Logits, Tally, tally_of
from .graph import Step
from .launch_view import Cleared, LaunchView
from .plan import Plan
from .step_check import LaunchFailed, Trial
from .verify import affordable

if TYPE_CHECKING:
    from .engine import Engine
    from .runner import Runner

#: What is fed: long enough for every bucket of tokens that an effort asks for.
TEXT = (
    "The compiler reads a kernel once and the machine runs it a million times. Whoever measures "
    "both knows what each is worth: a second of compiling is nothing to a program that runs for a "
    "year, and a year to one that runs for a second. What is wrong, though, is wrong from the "
    "first launch on, however quick it was. So look at what came out before you look at the clock."
)
#: A chain of references reads each weight once for each pass: no more weights than this.
CHAIN_WEIGHTS = 1 << 29
#: What the logits may be off: the bound of the engine's precision.
LOGITS = 1e-3
#: Programs with larger weights than this are not run on random ones, nor those of a larger context
#: than this many bytes.
RANDOM_WEIGHTS, RANDOM_BYTES = 1 << 28, 1 << 28
#: Positions of random inputs: what float32 can't avoid grows with them, and a program is the same
#: for all. Odd, so that no tile divides it.
LONGEST = 2047
#: Operations up to which a program is run on several random inputs, and on how many.
CHEAP, SEEDS = 1 << 26, 3

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much a check does.

    ``passes`` are the numbers of tokens fed one after the other. Heavy references are computed for
    about ``seconds`` in all, spread over the layers, but in ``fewest`` of each pass at least.
    ``random``: programs run on random inputs, too; ``whole``: the plan as it is, ``repeat`` times,
    and its logits against the chain.
    """

    repeat: int = 3
    passes: tuple[int, ...] = (23, 1, 1, CHUNK, 1, 1)
    seconds: float = 20.0
    fewest: int = FEWEST
    random: bool = True
    whole: bool = True
    short: bool = False


#: Before a model runs for the first time under a new driver, and behind a tuning run, which has
#: compared each of its programs on random inputs.
SHORT = Effort(2, (23, 1, 40), 1.0, fewest=1, random=False, whole=False, short=True)


def passes_of(engine: Engine, sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Token ids of passes of so many tokens, as far as ``limit`` positions hold them."""
    ids, total = engine.tokenizer.prompt(TEXT), sum(sizes)
    ids = (ids * ceil(total / len(ids)))[:total]
    passes, start = list[list[int]](), 0
    for size in sizes:
        passes.append(ids[start : min(start + size, limit)])
        start += size
    return [tokens for tokens in passes if tokens]


def steps_of(runner: Runner) -> list[Step]:
    """What a model launches in any bucket of tokens and of contexts that it and the device have."""
    contexts = {runner.bucket(c) for c in CONTEXTS if c <= context_bucket(runner.limit)}
    steps = [s for m in (1, *TOKENS) for c in contexts for s in runner.graph.body(m, c)]
    return [*steps, *runner.graph.head()]


@dataclass
class Findings:
    """What one round found.

    ``stopped``: it ended for a failure of the device that is no single launch's; ``problem``: for
    something else that keeps it from going on.
    """

    tallies: list[Tally] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    logits: list[Logits] = field(default_factory=list)
    same: bool | None = None
    notes: list[str] = field(default_factory=list)
    stopped: str = ""
    problem: str = ""


class Exam:
    """Examines what ``engine`` runs. ``known`` are launches that earlier rounds found to be right:
    they are run and not compared again. It is added to.
    """

    def __init__(
        self, engine: Engine, effort: Effort, known: set[tuple[object, ...]], progress: Progress
    ) -> None:
        self.engine, self.effort, self.known, self.progress = engine, effort, known, progress
        self.runner, self.planner = engine.runner, engine.runner.planner
        self.found = Findings()
        self._walks, self._turn, self._cleared = 0, 0, Cleared()
        self._stepwise: list[Array] = []

    def run(self) -> None:
        """Everything; a round that finds a wrong launch leaves the rest to the next one."""
        passes = passes_of(self.engine, self.effort.passes, self.runner.limit)
        try:
            self._step_by_step(passes)
            if self.effort.random:
                self._random_inputs()
        except LaunchFailed as failed:
            self.found.faults.append(failed.fault)
        if not self.found.faults and self.effort.whole:
            self._whole(passes[: len(self._stepwise)])
        self.runner.reset()

    # -- launch by launch ------------------------------------------------------------------------

    def _step_by_step(self, passes: Sequence[Sequence[int]]) -> None:
        sizes = [len(tokens) for tokens in passes]
        self._build(sizes)
        self._budget = Budget(
            self.runner.graph, self.runner.bucket, sizes, self.effort.seconds, self.effort.fewest
        )
        self.runner.reset()
        self.runner.execute = self._walk
        try:
            for self._turn, tokens in enumerate(passes):
                self.progress(f"launch by launch, pass {self._turn + 1} of {len(passes)}")
                self.runner.feed(tokens)
                self._stepwise.append(self.runner.logits())
        except OutOfDeviceMemory as error:
            self.found.notes.append(f"a chunk of {len(tokens)} tokens was not run: {error}")
        finally:
            self.runner.execute = Plan.run

    def _build(self, passes: Sequence[int]) -> None:
        """Every program that passes of so many tokens need. Raises :class:`LaunchFailed`."""
        graph, length, steps = self.runner.graph, 0, list(self.runner.graph.head())
        for m in passes:
            length += m
            steps += graph.body(token_bucket(m), self.runner.bucket(length))
        self._load(steps)

    def _load(self, steps: Sequence[Step]) -> list[Choice]:
        """What is chosen for ``steps`` and for the conversions that they need, all of it built."""
        self.planner.resolve(steps)
        choices = self.planner.choices
        wanted = dict.fromkeys(step.workload for step in steps)
        wanted |= dict.fromkeys(conversions_of(choices[workload] for workload in wanted))
        for workload in wanted:
            try:
                self.planner.load([choices[workload]])
            except OpenCLError as error:
                config = choices[workload].config
                raise LaunchFailed(
                    Fault(workload, config, "build", "failed", str(error))
                ) from error
        return [choices[workload] for workload in wanted]

    def _walk(self, plan: Plan, m: int) -> None:
        """Stands in for :meth:`.plan.Plan.run`."""
        self._walks += 1
        self._cleared.clear(plan.steps, self.planner.tensors)
        compared = self._budget.chosen(plan.steps, self._turn)
        start = int(self.planner.tensors["state"].read()[0])
        for index, bound in enumerate(plan.steps):
            key = (self._walks, index, bound.workload, bound.config)
            must = index in compared and key not in self.known
            view = LaunchView(
                bound.workload, bound.config, bound.names, self.planner.tensors,
                self.planner.resident.weights, start, m,
            )  # fmt: skip
            seen = Trial(bound, view, self.effort.repeat).run(must)
            tally = self._tally(bound.workload, bound.config)
            tally.launches += 1
            if seen.error is not None:
                tally.compared += 1
                tally.note(seen.error, seen.allowed)
            if seen.fault:
                self.found.faults.append(seen.fault)
            elif seen.error is not None:
                self.known.add(key)

    def _tally(self, workload: Workload, config: Config) -> Tally:
        tally = tally_of(self.found.tallies, workload.op, config.variant)
        if tally is None:
            tally = Tally(workload.op, config.variant)
            self.found.tallies.append(tally)
        return tally

    # -- random inputs ---------------------------------------------------------------------------

    def _random_inputs(self) -> None:
        """Every program of the model, those of contexts that were not reached included."""
        tried: set[tuple[str, Workload]] = set()
        choices = self._every_choice()
        for place, choice in enumerate(choices):
            workload = _shorter(affordable(choice.workload, choice.config))
            key = (source_of(workload, choice.config).digest, workload)
            known = ("random", workload, choice.config) in self.known
            if known or key in tried or self._too_large(workload):
                continue
            tried.add(key)
            self.progress(f"random inputs, program {place + 1} of {len(choices)}")
            self._on_random_inputs(choice, workload)

    def _every_choice(self) -> list[Choice]:
        """What runs in any bucket."""
        steps = steps_of(self.runner)
        every = {step.workload for step in steps}
        missing = {each.workload for each in self.planner.chooser.abilities.missing(every)}
        return self._load([step for step in steps if step.workload not in missing])

    def _too_large(self, workload: Workload) -> bool:
        spec = SPECS[workload.op]
        large = weights_of(workload) > RANDOM_WEIGHTS
        if large:
            self.found.notes.append(f"{workload}: too large for random weights")
        elif large := not weights_of(workload) and spec.bytes(workload) > RANDOM_BYTES:
            self.found.notes.append(f"{workload}: too large for random inputs")
        return large

    def _on_random_inputs(self, choice: Choice, workload: Workload) -> None:
        """The program of ``choice``, for sizes whose reference is affordable."""
        config, spec = choice.config, SPECS[workload.op]
        try:
            verdict, same = self._verdict(workload, config)
        except OutOfDeviceMemory as error:
            self.found.notes.append(f"{workload}: not run on random inputs: {error}")
            return
        except OpenCLError as error:
            fault = Fault(choice.workload, config, "random inputs", "failed", str(error))
            raise LaunchFailed(fault) from error
        tally = self._tally(workload, config)
        tally.random += 1
        tally.note(verdict.error, spec.tolerance(workload))
        if verdict.ok and same:
            self.known.add(("random", workload, config))
        else:
            self.found.faults.append(_random_fault(choice, workload, verdict, same))

    def _verdict(self, workload: Workload, config: Config) -> tuple[Verdict, bool]:
        """The worst of some random inputs, and whether repeats gave the same bits."""
        context, loader = self.runner.context, self.runner.loader
        program = loader.load(source_of(workload, config), label_of(workload, config))
        for seed in range(SEEDS if SPECS[workload.op].flops(workload) <= CHEAP else 1):
            operation = Often(context, workload, seed=seed)
            verdict, same = operation.verify_often(program, config, self.effort.repeat)
            if not verdict.ok or not same:
                break
        program.launched = True
        return verdict, same

    # -- the whole plan --------------------------------------------------------------------------

    def _whole(self, passes: Sequence[Sequence[int]]) -> None:
        """The plan without a stop between its launches, and its logits."""
        results = []
        for turn in range(self.effort.repeat):
            self.progress(f"the whole plan, {turn + 1} of {self.effort.repeat}")
            self.runner.reset()
            results.append([self._fed(tokens) for tokens in passes])
        bits = {tuple(logits.tobytes() for logits in each) for each in (*results, self._stepwise)}
        self.found.same = len(bits) == 1
        if self._all_weights() > CHAIN_WEIGHTS:
            self.found.notes.append("the model is too large for a chain of references")
            return
        self.progress("the chain of references")
        chain, positions = Chain(self.runner), 0
        for tokens, *got in zip(passes[:2], *(each[:2] for each in results), strict=True):
            positions += len(tokens)
            wanted = chain.feed(tokens)
            error = max(logits_error(logits, wanted) for logits in got)
            finite = error if np.isfinite(error) else None
            self.found.logits.append(Logits(positions, finite, LOGITS))

    def _fed(self, tokens: Sequence[int]) -> Array:
        self.runner.feed(tokens)
        return self.runner.logits()

    def _all_weights(self) -> int:
        steps = [*self.runner.graph.body(1, context_bucket(1)), *self.runner.graph.head()]
        return sum(weights_of(s.workload) for s in steps if s.workload.op != "embedding")


def _shorter(workload: Workload) -> Workload:
    long = "ctx" in dict(workload.items) and workload.size("ctx") > LONGEST
    return workload.replace(ctx=LONGEST) if long else workload


def _random_fault(choice: Choice, workload: Workload, verdict: Verdict, same: bool) -> Fault:
    at = "" if workload == choice.workload else f" of {workload}"
    message = verdict.message or "other bits each time, all of them near the reference"
    error = verdict.error if np.isfinite(verdict.error) else None
    kind: Kind = "wrong" if same else "same"
    return Fault(choice.workload, choice.config, f"random inputs{at}", kind, message, error)


def unexplained(found: Findings) -> str:
    """What no single launch explains; empty if there is nothing."""
    problems: list[str] = []
    if found.same is False:
        problems.append(
            "the whole plan gives other logits each time, and no single launch does: launches may "
            "overlap that must not"
        )
    problems += [
        f"the logits after {each.positions} positions are not those of the references' chain "
        f"({_error(each.error)}, {each.allowed:.0e} allowed), and no single launch is wrong"
        for each in found.logits
        if each.error is None or each.error > each.allowed
    ]
    return "; ".join(problems)


def _error(error: float | None) -> str:
    return "not finite" if error is None else f"relative L2 error {error:.2e}"
