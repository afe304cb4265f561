"""What a configuration pays for the conversions that it causes.

One that reads activations from an image of their own needs a launch that makes the image. Its time
is added to that of the configuration, so that those that need none compete on equal terms. It is
the time of the conversion's safe configuration, or of what bans and pins leave in its place, the
same for all that need it: how a conversion runs is searched only once something chosen needs it
(:class:`.wanted.Wanted`).
"""

from __future__ import annotations

from ..errors import LaunchError
from ..harness.operation import Operation, exceeded, label_of
from ..kernels import SPECS
from ..kernels.types import Config, Workload
from ..runtime.context import Context
from ..runtime.program import Program, ProgramLoader
from .measure import Timing, time_bound


class Conversions:
    """Times conversions on one context: each verified once, and timed anew for every trial."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._ready: dict[tuple[Workload, Config], tuple[Operation, Program]] = {}

    def time(self, workload: Workload, config: Config | None = None) -> Timing:
        """The time of ``config``; of the safe configuration where none is given.

        Raises :class:`~clkiln.errors.OpenCLError` where the conversion can't be launched or is
        wrong, :class:`~clkiln.errors.OutOfDeviceMemory` where it does not fit."""
        if config is None:
            config = SPECS[workload.op].safe(workload, self.context.info)
        operation, program = self._prepared(workload, config)
        bound = operation.bind(program, config)
        try:
            return time_bound(operation, config, bound, None)
        finally:
            bound.release()

    def _prepared(self, workload: Workload, config: Config) -> tuple[Operation, Program]:
        if (workload, config) not in self._ready:
            spec = SPECS[workload.op]
            broken = spec.check(workload, config, self.context.info)
            label = label_of(workload, config)
            if broken is not None:
                raise LaunchError(f"{label}: {broken.reason}")
            program = ProgramLoader(self.context).load(spec.source(workload, config), label)
            operation = Operation(self.context, workload)
            problem = exceeded(workload, config, program)
            problem = problem or operation.verify(program, config).message
            if problem:
                raise LaunchError(f"{label}: {problem}")
            self._ready[workload, config] = operation, program
        return self._ready[workload, config]
