"""One trial, in the worker: check, build, verify, time, and take the binary."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ..errors import BuildError, OpenCLError, OutOfDeviceMemory
from ..harness.operation import Operation, exceeded, label_of
from ..kernels.types import Config, Workload
from ..runtime.context import Context
from ..runtime.program import Program, ProgramLoader
from .convert import Conversions
from .measure import time_bound


@dataclass
class Outcome:
    """How a trial ended; fields as in the cache file's ``trials``. ``key`` names the binary."""

    status: str
    message: str = ""
    time: float | None = None
    spread: float | None = None
    repeats: int = 0
    compile_time: float | None = None
    error: float | None = None
    key: str = ""
    binary: bytes = field(default=b"", repr=False)


class Bench:
    """Runs trials on one context. The last workload's inputs and reference are kept."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._operation: Operation | None = None
        self._conversions = Conversions(context)

    def operation(self, workload: Workload) -> Operation:
        if self._operation is None or self._operation.workload != workload:
            self._operation = None  # free the old one's inputs before making new ones
            seed = int.from_bytes(hashlib.sha256(str(workload).encode()).digest()[:4], "little")
            self._operation = Operation(self.context, workload, seed=seed)
        return self._operation

    def trial(
        self,
        workload: Workload,
        config: Config,
        best: float | None,
        made: Mapping[Workload, Config] = MappingProxyType({}),
    ) -> Outcome:
        """Try ``config``; ``best`` is the best time so far, which decides how long to measure.

        ``made`` has the configurations of conversions that are not to be their safe ones.
        """
        operation = self.operation(workload)
        broken = operation.spec.check(workload, config, self.context.info)
        if broken is not None:
            return Outcome("constraint", broken.reason)
        loader = ProgramLoader(self.context)
        source = operation.spec.source(workload, config)
        start = time.perf_counter()
        try:
            program = loader.load(source, label_of(workload, config))
        except BuildError as error:
            spent = time.perf_counter() - start
            return Outcome("compile error", str(error)[:2000], compile_time=spent)
        built = time.perf_counter() - start
        broken_text = exceeded(workload, config, program)
        if broken_text:
            return Outcome("constraint", broken_text, compile_time=built)
        try:
            outcome = self._run(operation, config, program, best, made)
        except (OpenCLError, OutOfDeviceMemory) as error:
            return Outcome("launch error", str(error)[:2000], compile_time=built)
        outcome.compile_time = built + (outcome.compile_time or 0.0)
        outcome.key = loader.key(source)
        return outcome

    def _run(
        self,
        operation: Operation,
        config: Config,
        program: Program,
        best: float | None,
        made: Mapping[Workload, Config],
    ) -> Outcome:
        bound = operation.bind(program, config)
        try:
            verdict = operation.verify(program, config, bound=bound)
            if not verdict.ok:
                return Outcome("wrong result", verdict.message, error=verdict.error)
            timing = time_bound(operation, config, bound, best)
        finally:
            bound.release()
        needed = operation.spec.conversions(operation.workload, config).values()
        paid = [(each, self._conversions.time(each, made.get(each))) for each in needed]
        return Outcome(
            "ok",
            message="; ".join(f"with {each.median:.3g} s of {workload}" for workload, each in paid),
            time=timing.median + sum(each.median for _, each in paid),
            spread=timing.spread + sum(each.spread for _, each in paid),
            repeats=timing.repeats,
            error=verdict.error,
            # What the first launch took beyond the others is the rest of the compiler's work.
            compile_time=max(0.0, (bound.first_launch or 0.0) - timing.median),
            binary=program.binary(),
        )
