"""Tuning as a library call: :func:`tune`, which the command line's ``tune`` is a face of.

::

    import clkiln

    summary = clkiln.tune("smollm2-135m", level="fast")
    print(summary.decode_before, "->", summary.decode_after, "tokens/s")

A layer of its own between ``cli`` and the rooms in the middle: a tuning run takes the workloads of
``inference``, the search of ``tuner`` and an engine to measure before and after, and those two
rooms don't know each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .job import TuningJob
from .summary import STANDARD, TuneSummary

if TYPE_CHECKING:
    from ..runtime.device import Device
    from ..tuner.session import Progress

__all__ = ["STANDARD", "TuneSummary", "TuningJob", "tune"]


def tune(
    model: str | Path | None = None,
    device: str | Device | None = None,
    cache: str | Path | None = None,
    *,
    level: str = "normal",
    budget: float | str | None = None,
    kernels: Sequence[str] = (),
    variant: Sequence[str] = (),
    limits: Sequence[str | Path] = (),
    force: bool = False,
    quantize: str | None = None,
    check: bool = True,
    progress: Callable[[Progress], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> TuneSummary:
    """Search the best kernels of ``model`` for a device and keep them in its cache file.

    ``model`` is a path or a catalog entry. Without one a standard set of shapes is searched, those
    of the layers of models that people run: a model that was never tuned then runs with the
    parameters of the shapes that are most like its own, until it is tuned itself. ``device`` and
    ``cache`` are as of :meth:`Engine.load <clkiln.inference.engine.Engine.load>`. ``level`` is how
    long to search: ``fast`` (45 s), ``normal`` (5 min), ``wide`` (30 min) or ``exhaustive``;
    ``budget``, in seconds or as ``"90s"``, ``"5m"`` or ``"1h"``, ends it sooner. ``kernels`` limits
    the search to operations (``gemv``, ...), ``variant`` forces where operands lie, as
    ``--variant`` does; ``limits`` is as of ``Engine.load``, and what is found under limits is kept
    apart. ``force`` searches again what is done already. ``quantize`` is the coding in
    which float weights are loaded, as of ``Engine.load``. ``check``: at the end compare some of the
    model's launches with their references, and replace what is wrong.

    ``progress`` is called after every trial with a :class:`~clkiln.tuner.session.Progress`,
    ``warn`` with each warning as one line (default: the log). What was found is kept whatever ends
    the call, a ``KeyboardInterrupt`` included; the next call goes on from there.

    Raises :class:`~clkiln.errors.UsageError` for arguments that mean nothing,
    :class:`~clkiln.errors.ModelError` and its kin for the model's file,
    :class:`~clkiln.errors.DeviceError`, :class:`~clkiln.errors.UnsupportedOperation` for a model
    that the device can't run, :class:`~clkiln.errors.CacheError` for a cache file that can't be
    written, :class:`~clkiln.errors.TuningError` where no trial can be made at all.
    """
    with TuningJob(
        model, device, cache, level=level, budget=budget, kernels=kernels, variant=variant,
        limits=limits, force=force, quantize=quantize, check=check, warn=warn,
    ) as job:  # fmt: skip
        return job.run(progress)
