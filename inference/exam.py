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
from .buckets import TOKENS, context_bucket
from .chain import Chain, logits_error
from .choose import Choice
from .conversions import conversions_of
from .findings import Fault, Kind, Logits, Tally, tally_of
from .graph import MATRIX_OPS, uses
from .launch_view import Cleared, LaunchView, real_workload
from .plan import BoundStep, Plan
from .step_check import LaunchFailed, Trial
from .verify import affordable

if TYPE_CHECKING:
    from .engine import Engine

#: What is fed: long enough for every bucket of tokens that an effort asks for.
TEXT = (
    "The compiler reads a kernel once and the machine runs it a million times. Whoever measures "
    "both knows what each is worth: a second of compiling is nothing to a program that runs for a "
    "year, and a year to one that runs for a second. What is wrong, though, is wrong from the "
    "first launch on, however quick it was. So look at what came out before you look at the clock."
)
#: Seconds that a reference takes, by what was measured on one core: to decode a weight, and for
#: an operation in float64.
PER_WEIGHT, PER_FLOP = 1e-8, 3e-11
#: Layers in which a heavy launch is compared at least: the first and the last.
FEWEST = 2
#: A chain of references reads each weight once for each pass: no more weights than this.
CHAIN_WEIGHTS = 1 << 29
#: What the logits may be off: the bound of the engine's precision.
LOGITS = 1e-3
#: Programs with larger weights than this are not run on random ones.
RANDOM_WEIGHTS = 1 << 28
#: Operations up to which a program is run on several random inputs, and on how many.
CHEAP, SEEDS = 1 << 26, 3

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much a check does.

    ``passes`` are the numbers of tokens fed one after the other. Heavy references are computed for
    about ``seconds`` in all, spread over the layers. ``random``: programs run on random inputs,
    too; ``whole``: the plan as it is, ``repeat`` times, and its logits against the chain.
    """

    repeat: int = 3
    passes: tuple[int, ...] = (23, 1, 1, 125, 1, 1)
    seconds: float = 20.0
    random: bool = True
    whole: bool = True
    short: bool = False


#: Before a model runs for the first time under a new driver, and behind a tuning run, which has
#: compared each of its programs on random inputs.
SHORT = Effort(2, (23, 1, 40), 1.0, random=False, whole=False, short=True)


def passes_of(engine: Engine, sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Token ids of passes of so many tokens, as far as ``limit`` positions hold them."""
    ids, total = engine.tokenizer.prompt(TEXT), sum(sizes)
    ids = (ids * ceil(total / len(ids)))[:total]
    passes, start = [], 0
    for size in sizes:
        if start + size <= limit:
            passes.append(ids[start : start + size])
            start += size
    return passes


@dataclass
class Findings:
    """What one round found."""

    tallies: list[Tally] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    logits: list[Logits] = field(default_factory=list)
    same: bool | None = None
    notes: list[str] = field(default_factory=list)


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
        self._walks, self._cleared = 0, Cleared()
        self._stepwise: list[Array] = []

    def run(self) -> Findings:
        """Everything; a round that finds a wrong launch leaves the rest to the next one."""
        passes = passes_of(self.engine, self.effort.passes, self.runner.limit)
        if not passes:
            self.found.notes.append(f"a context of {self.runner.limit} is too small for a check")
            return self.found
        try:
            self._step_by_step(passes)
            if self.effort.random:
                self._random_inputs()
        except LaunchFailed as failed:
            self.found.faults.append(failed.fault)
        if not self.found.faults and self.effort.whole:
            self._whole(passes)
        self.runner.reset()
        return self.found

    # -- launch by launch ------------------------------------------------------------------------

    def _step_by_step(self, passes: Sequence[Sequence[int]]) -> None:
        self._share = self._affordable_share(passes)
        self.runner.reset()
        self.runner.execute = self._walk
        try:
            for index, tokens in enumerate(passes):
                self.progress(f"launch by launch, pass {index + 1} of {len(passes)}")
                self.runner.feed(tokens)
                self._stepwise.append(self.runner.logits())
        finally:
            self.runner.execute = Plan.run

    def _walk(self, plan: Plan, m: int) -> None:
        """Stands in for :meth:`.plan.Plan.run`."""
        self._walks += 1
        self._cleared.clear(plan.steps, self.planner.tensors)
        compared = self._chosen(plan.steps)
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

    def _chosen(self, steps: Sequence[BoundStep]) -> set[int]:
        """Which launches are compared: all but of heavy ones some layers, first and last among
        them, where there is no time for all."""
        groups: dict[tuple[Workload, Config], list[int]] = {}
        for index, bound in enumerate(steps):
            groups.setdefault((bound.workload, bound.config), []).append(index)
        chosen: set[int] = set()
        for (workload, _), places in groups.items():
            wanted = len(places)
            if workload.op in MATRIX_OPS and workload.op != "embedding":
                wanted = min(wanted, max(FEWEST, ceil(self._share * wanted)))
            spread = np.linspace(0, len(places) - 1, wanted).round().astype(int)
            chosen |= {places[i] for i in spread}
        return chosen

    def _affordable_share(self, passes: Sequence[Sequence[int]]) -> float:
        """The share of the layers whose heavy references there is time for."""
        graph, length, cost = self.runner.graph, 0, 0.0
        for tokens in passes:
            m = len(tokens)
            length += m
            bucket = 1 if m == 1 else next(size for size in TOKENS if m <= size)
            for step in graph.body(bucket, context_bucket(length)):
                cost += _reference_seconds(step.workload, m)
        return min(1.0, self.effort.seconds / cost) if cost else 1.0

    def _tally(self, workload: Workload, config: Config) -> Tally:
        tally = tally_of(self.found.tallies, workload.op, config.variant)
        if tally is None:
            tally = Tally(workload.op, config.variant)
            self.found.tallies.append(tally)
        return tally

    # -- random inputs ---------------------------------------------------------------------------

    def _random_inputs(self) -> None:
        """Every program of the model, those of contexts that were not reached included."""
        graph, context = self.runner.graph, self.runner.context
        wanted = {use.workload for use in uses(graph, self.runner.limit)}
        contexts = sorted({w.size("ctx") for w in wanted if "ctx" in dict(w.items)})
        steps = [s for m in (1, *TOKENS) for ctx in contexts for s in graph.body(m, ctx)]
        self.planner.load(self.planner.resolve(s for s in steps if s.workload in wanted))
        tried: set[tuple[str, Workload]] = set()
        chosen = self.planner.choices
        wanted |= {*conversions_of(chosen[workload] for workload in wanted)}
        choices = [chosen[workload] for workload in chosen if workload in wanted]
        for place, choice in enumerate(choices):
            workload, config = affordable(choice.workload, choice.config), choice.config
            source = source_of(workload, config)
            key = ("random", workload, config)
            if key in self.known or (source.digest, workload) in tried:
                continue
            if _weights(workload) > RANDOM_WEIGHTS:
                self.found.notes.append(f"{workload}: too large for random weights")
                continue
            tried.add((source.digest, workload))
            self.progress(f"random inputs, program {place + 1} of {len(choices)}")
            program = self.runner.loader.load(source, label_of(workload, config))
            seeds = SEEDS if SPECS[workload.op].flops(workload) <= CHEAP else 1
            try:
                for seed in range(seeds):
                    operation = Often(context, workload, seed=seed)
                    verdict, same = operation.verify_often(program, config, self.effort.repeat)
                    if not verdict.ok or not same:
                        break
            except OutOfDeviceMemory as error:
                self.found.notes.append(f"{workload}: not run on random inputs: {error}")
                continue
            except OpenCLError as error:
                fault = Fault(choice.workload, config, "random inputs", "failed", str(error))
                raise LaunchFailed(fault) from error
            program.launched = True
            tally = self._tally(workload, config)
            tally.random += 1
            tally.note(verdict.error, SPECS[workload.op].tolerance(workload))
            if verdict.ok and same:
                self.known.add(key)
            else:
                self.found.faults.append(_random_fault(choice, workload, verdict, same))

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
        return sum(_weights(s.workload) for s in steps if s.workload.op != "embedding")


def _random_fault(choice: Choice, workload: Workload, verdict: Verdict, same: bool) -> Fault:
    at = "" if workload == choice.workload else f" of {workload}"
    message = verdict.message or "other bits each time, all of them near the reference"
    error = verdict.error if np.isfinite(verdict.error) else None
    kind: Kind = "wrong" if same else "same"
    return Fault(choice.workload, choice.config, f"random inputs{at}", kind, message, error)


def _weights(workload: Workload) -> int:
    """Weights that a reference decodes."""
    sizes = dict(workload.items)
    n, k = sizes.get("n"), sizes.get("k")
    if workload.op not in MATRIX_OPS or not isinstance(n, int) or not isinstance(k, int):
        return 0
    return n * k * (2 if sizes.get("fuse") == "swiglu" else 1)


def _reference_seconds(workload: Workload, m: int) -> float:
    if workload.op not in MATRIX_OPS or workload.op == "embedding":
        return 0.0
    real = real_workload(workload, m)
    return PER_WEIGHT * _weights(real) + PER_FLOP * SPECS[real.op].flops(real)


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
