"""From steps to launches: chosen configurations, loaded programs, arguments bound once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import CacheMissError, UnsupportedOperation
from ..harness.operation import exceeded, label_of, source_of
from ..kernels import SPECS
from ..kernels.images import image_shape
from ..kernels.types import Argument, Config, Geometry, Workload
from ..runtime.context import Context
from ..runtime.launch import Enqueue, Launch
from ..runtime.memory import Tensor
from ..runtime.program import Program, ProgramLoader
from .choose import UNVERIFIED, Choice, Chooser
from .conversions import Conversion, conversions_of, image_of, with_conversions
from .graph import MATRIX_OPS, Step
from .resident import ResidentWeights
from .verify import Verifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoundStep:
    """A launch, and what is needed to give it the geometry of a smaller step.

    ``names`` are the graph's names of what lies in the place of its arguments.
    """

    launch: Launch
    workload: Workload
    config: Config
    names: Mapping[str, str] = field(default_factory=dict)

    def geometry(self, m: int) -> Geometry:
        items = dict(self.workload.items)
        fits = self.workload.replace(m=m) if "m" in items else self.workload
        return SPECS[self.workload.op].geometry(fits, self.config)


class Plan:
    """Launches in order. The first run times each program's first launch."""

    def __init__(self, steps: Sequence[BoundStep], seen: dict[int, float]) -> None:
        self.steps = steps
        self._m, self._calls = 0, list[Enqueue]()
        self._seen = seen
        self._fresh = True

    def run(self, m: int) -> None:
        """Enqueue every launch for ``m`` tokens. Raises :class:`~clkiln.errors.LaunchError`."""
        if self._fresh:
            self._first_run([step.geometry(m) for step in self.steps])
            self._fresh = False
            return
        if m != self._m:
            # Of the last size only: prompts have any of hundreds, and each takes 0.25 MB to hold.
            self._calls = [step.launch.prepare(step.geometry(m)) for step in self.steps]
            self._m = m
        # Hundreds of launches a token: nothing but the calls in this loop.
        for index, call in enumerate(self._calls):
            status = call()
            if status:
                step = self.steps[index]
                step.launch.check(status, step.geometry(m))

    def _first_run(self, geometries: Sequence[Geometry]) -> None:
        """Run once, and note by how much each program's first launch exceeds its second.

        Only a second launch in the same run is of the same size; without one, all of it counts.
        """
        once: set[int] = set()
        for step, geometry in zip(self.steps, geometries, strict=True):
            program = step.launch.program
            new = id(program) not in self._seen
            if not new and id(program) not in once:
                step.launch.enqueue(geometry)
                continue
            program.context.finish()
            start = time.perf_counter()
            step.launch.enqueue(geometry)
            program.context.finish()
            took = time.perf_counter() - start
            program.launched = True
            if new:
                self._seen[id(program)] = took
                once.add(id(program))
            else:
                self._seen[id(program)] = max(0.0, self._seen[id(program)] - took)
                once.discard(id(program))


class Planner:
    """Binds steps to what lies on one device. Launches are shared between plans.

    ``tensors`` holds activations, caches and vectors by the graph's names and may be changed;
    :meth:`replace` does so, and drops the launches that were bound to the one before.
    """

    def __init__(
        self,
        context: Context,
        loader: ProgramLoader,
        chooser: Chooser,
        resident: ResidentWeights,
        warn: Callable[[str], None],
    ) -> None:
        self.context, self.loader, self.chooser = context, loader, chooser
        self.resident, self.warn = resident, warn
        self.verifier = Verifier(context, loader, chooser.store, chooser.driver)
        self.tensors: dict[str, Tensor] = {}
        self.choices: dict[Workload, Choice] = {}
        self.first_launches: dict[int, float] = {}
        self._launches: dict[tuple[Workload, tuple[tuple[str, str], ...]], BoundStep] = {}

    def resolve(self, steps: Iterable[Step], beside: Iterable[Step] = ()) -> list[Choice]:
        """Choose for every workload of ``steps``, before anything is allocated for it.

        A linear layer's decode workload decides its weight's layout; whatever else reads that
        weight takes a configuration for the same layout, as will the steps ``beside``, which are
        to be resolved later. Parameters tuned under another driver or for another shape are
        verified here. Raises :class:`~clkiln.errors.UnsupportedOperation`, naming all operations
        that this device can't run, those of the steps ``beside`` as well, and
        :class:`~clkiln.errors.CacheMissError` where the cache is required and holds no parameters
        for this driver.
        """
        steps, beside = list(steps), list(beside)
        readers: dict[Workload, set[str]] = {}
        for step in steps:
            if step.workload not in self.choices:
                weight = {step.tensors["w"]} if _reads_matrix(step) else set()
                readers.setdefault(step.workload, set()).update(weight)
        every = [step.workload for step in (*steps, *beside)]
        sharing = _sharing([*steps, *beside])
        untuned: list[str] = []
        # GEMV first: it decides layouts.
        for workload in sorted(readers, key=lambda w: (w.op != "gemv", str(w))):
            layouts = {self.resident.layouts.get(name) for name in readers[workload]} - {None}
            layout = layouts.pop() if layouts else None
            others = sharing.get(workload, set()) - {workload}
            try:
                choice = self.chooser.choose(workload, layout, others)
            except UnsupportedOperation:
                self._refuse_missing(every)
                raise
            if self.loader.require_cache and choice.fallback:
                untuned.append(choice.fallback)
                continue
            if choice.origin in UNVERIFIED:
                self._refuse_missing(every)  # to verify is to build and to run
            choice = self._verified(choice, layout, others)
            self.choices[workload] = choice
            chosen = SPECS[workload.op].layout(workload, choice.config)
            for name in readers[workload]:
                self.resident.layouts.setdefault(name, str(chosen))
        if untuned:
            self._refuse_missing(every)
            more = f" (and {len(untuned) - 1} more)" if len(untuned) > 1 else ""
            raise CacheMissError(
                f"{untuned[0]}{more}: run clkiln tune for this model and device first"
            )
        choices = [self.choices[workload] for workload in readers]
        # Conversions that they cause, which cause none themselves.
        converting = [Step(workload, {}) for workload in conversions_of(choices)]
        return choices + self.resolve(converting) if converting else choices

    def _refuse_missing(self, workloads: Iterable[Workload]) -> None:
        """Raises :class:`~clkiln.errors.UnsupportedOperation` where any of them can't run."""
        missing = self.chooser.abilities.missing(workloads)
        if missing:
            raise self.chooser.abilities.refusal(missing)

    def load(self, choices: Iterable[Choice]) -> None:
        """Programs of ``choices``: one query of the cache file, then from binary or source."""
        choices = list(choices)
        self.loader.prefetch(source_of(choice.workload, choice.config) for choice in choices)
        for choice in choices:
            self._program(choice.workload)

    def _program(self, workload: Workload) -> Program:
        """The program of what was chosen for ``workload``.

        What was tuned or verified here is known to run. Of a safe default or a neighbour's
        parameters, the compiled kernel may take more registers or local memory than a group of
        that size has: then another is chosen, of the same layout. Raises
        :class:`~clkiln.errors.UnsupportedOperation` where none is small enough.
        """
        while True:
            choice = self.choices[workload]
            label = label_of(workload, choice.config)
            program = self.loader.load(source_of(workload, choice.config), label)
            if choice.origin == "tuned" or choice.origin in UNVERIFIED:
                return program
            broken = exceeded(workload, choice.config, program)
            if not broken:
                return program
            logger.info("%s: %s: trying a smaller one", label, broken)
            self.chooser.shrink(choice, program.work_group_limit(), broken)
            layout = SPECS[workload.op].layout(workload, choice.config)
            self.choices[workload] = self._verified(self.chooser.choose(workload, layout), layout)

    def plan(self, steps: Sequence[Step]) -> Plan:
        """Bind ``steps`` and the conversions that they need; their weights and tensors must be
        there. Raises :class:`~clkiln.errors.OutOfDeviceMemory` where an image does not fit."""
        self.resolve(steps)
        self.load(self.choices[step.workload] for step in _each(steps))
        # Now, for a kernel that turned out too large was replaced.
        converted = with_conversions(steps, self.choices)
        self._prepare([step for step in converted if isinstance(step, Conversion)])
        return Plan([self._bind(step) for step in converted], self.first_launches)

    def _prepare(self, conversions: Sequence[Conversion]) -> None:
        """Load what makes images, and find room for them."""
        if not conversions:
            return
        self.resolve(conversions)
        self.load(self.choices[step.workload] for step in _each(conversions))
        for step in conversions:
            if step.image not in self.tensors:
                self.tensors[step.image] = self._image(step)

    def _image(self, conversion: Conversion) -> Tensor:
        """Room for the image of a tensor: all of its rows, so that it serves every plan; no more
        than an image may have, for no kernel that asks for one reads more."""
        rows = self.tensors[conversion.source].shape[0]
        shape = image_shape(
            min(rows, self.context.info.image2d_max_height), conversion.workload.size("k")
        )
        return self.context.empty(shape, np.float32, "image2d", what=conversion.image)

    def replace(self, name: str, tensor: Tensor) -> None:
        """Put ``tensor`` in the place of the one called ``name``, which is given back together
        with its image."""
        # In this order: cut short anywhere, no launch is bound to what is gone.
        gone = {name, image_of(name)}
        self._launches = {
            key: step
            for key, step in self._launches.items()
            if gone.isdisjoint(bound for _, bound in key[1])
        }
        image = self.tensors.pop(image_of(name), None)
        old = self.tensors.get(name)
        self.tensors[name] = tensor
        for released in filter(None, (old, image)):
            released.release()

    def _bind(self, step: Step) -> BoundStep:
        key = (step.workload, tuple(sorted(step.tensors.items())))
        if key not in self._launches:
            program = self._program(step.workload)
            choice = self.choices[step.workload]
            spec = SPECS[step.workload.op]
            seen = [
                self._tensor(step, argument).seen_as(argument.memory, argument.nbytes)
                for argument in spec.arguments(step.workload, choice.config)
            ]
            launch = Launch(program, seen, spec.geometry(step.workload, choice.config))
            self._launches[key] = BoundStep(launch, step.workload, choice.config, step.tensors)
        return self._launches[key]

    def _tensor(self, step: Step, argument: Argument) -> Tensor:
        """What lies in the place of an argument."""
        if argument.role == "weight":
            return self.resident.part(step.tensors["w"], argument.name.partition(".")[2])
        return self.tensors[step.tensors[argument.name]]

    def _verified(
        self, choice: Choice, layout: str | None, others: Collection[Workload] = ()
    ) -> Choice:
        """``choice``, or another if its parameters, tuned elsewhere, are wrong here."""
        while choice.origin in UNVERIFIED:
            problem = self.verifier.problem(choice)
            if not problem:
                break
            where = "under another driver"
            if choice.origin == "similar":
                where = f"for {choice.tuned_for}"
            self.warn(
                f"{label_of(choice.workload, choice.config)} was tuned {where} and is wrong here, "
                f"using another: {problem}"
            )
            self.chooser.ban(choice)
            choice = self.chooser.choose(choice.workload, layout, others)
        return choice


def _each(steps: Iterable[Step]) -> Iterable[Step]:
    """One step of each workload."""
    return {step.workload: step for step in steps}.values()


def _reads_matrix(step: Step) -> bool:
    return step.workload.op in MATRIX_OPS


def _sharing(steps: Iterable[Step]) -> dict[Workload, set[Workload]]:
    """For each workload that reads matrices, all that read one of the same."""
    of_weight: dict[str, set[Workload]] = {}
    for step in filter(_reads_matrix, steps):
        of_weight.setdefault(step.tensors["w"], set()).add(step.workload)
    found: dict[Workload, set[Workload]] = {}
    for workloads in of_weight.values():
        for workload in workloads:
            found.setdefault(workload, set()).update(workloads)
    return found


def origins(choices: Mapping[Workload, Choice]) -> dict[str, int]:
    """How many workloads run by which kind of choice."""
    counts: dict[str, int] = {}
    for choice in choices.values():
        counts[choice.origin] = counts.get(choice.origin, 0) + 1
    return counts
