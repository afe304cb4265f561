"""Timing one verified candidate: median and spread over repeats, operands streaming as in use."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from ..errors import OutOfDeviceMemory
from ..harness.operation import Bound, Operation
from ..kernels.types import Config
from ..runtime.context import Context
from ..runtime.launch import event_seconds

#: Streaming operands are copied until they fill this, so that few caches hold them all.
STREAM_BYTES = 96 << 20
MAX_COPIES = 48
MIN_REPEATS, MAX_REPEATS = 5, 200
#: Seconds of measured time after which a median is good enough, and the least worth measuring.
ENOUGH = 0.06
#: A candidate slower than this many times the best is not measured any further.
CUT = 3.0


@dataclass(frozen=True)
class Timing:
    """``median`` and ``spread`` (interquartile range) in seconds over ``repeats`` launches."""

    median: float
    spread: float
    repeats: int


def time_bound(operation: Operation, config: Config, bound: Bound, best: float | None) -> Timing:
    """Time ``bound``, whose result was verified. ``best``: the best median so far, in seconds.

    Each launch takes the next copy of what streams from memory in a model. The candidate's first
    launches only warm up. Stops early when it is clearly slower than ``best``.
    """
    context = operation.context
    copies = _rotation(operation, config, bound)
    try:
        times = _first_times(context, copies)
        limit = MIN_REPEATS if _hopeless(times, best) else MAX_REPEATS
        while len(times) < limit and (sum(times) < ENOUGH or len(times) < MIN_REPEATS):
            count = min(_batch(times), limit - len(times))
            batch = [copies[(len(times) + i) % len(copies)] for i in range(count)]
            times += _launch(context, batch)
    finally:
        for other in copies[1:]:
            for name in _streaming(operation, config):
                other.tensors[name].release()
    times.sort()
    median = statistics.median(times)
    quarter = len(times) // 4
    return Timing(median, times[-1 - quarter] - times[quarter], len(times))


def _hopeless(times: list[float], best: float | None) -> bool:
    return best is not None and min(times) > CUT * best


def _batch(times: list[float]) -> int:
    """How many launches to enqueue before waiting: about 10 ms of them."""
    return max(1, min(50, int(0.01 / max(min(times), 1e-7))))


def _first_times(context: Context, copies: list[Bound]) -> list[float]:
    _launch(context, copies[:1])
    return _launch(context, copies[:2])


def _launch(context: Context, bounds: list[Bound]) -> list[float]:
    """Seconds of each launch: by device events, or by the clock around a finished queue."""
    if context.profiling:
        events = [b.launch.enqueue_timed() for b in bounds]
        context.finish()
        times = [event_seconds(e) for e in events]
        if min(times) > 0:
            return times
    times = []
    for bound in bounds:
        launch = bound.launch.prepare()
        start = time.perf_counter()
        bound.launch.check(launch())
        context.finish()
        times.append(time.perf_counter() - start)
    return times


def _streaming(operation: Operation, config: Config) -> set[str]:
    arguments = operation.spec.arguments(operation.workload, config)
    return {a.name for a in arguments if a.streams}


def _rotation(operation: Operation, config: Config, bound: Bound) -> list[Bound]:
    """``bound`` and copies of it that share everything but what streams."""
    names = _streaming(operation, config)
    nbytes = sum(bound.tensors[name].nbytes for name in names)
    if not nbytes:
        return [bound]
    budget = operation.context.memory
    room = (budget.limit - budget.used) // (2 * nbytes)
    count = max(0, min(MAX_COPIES, STREAM_BYTES // nbytes, room))
    copies = [bound]
    try:
        for _ in range(count):
            copies.append(bound.twin(names))
    except OutOfDeviceMemory:
        pass  # others use the device, too; what was copied will do
    return copies
