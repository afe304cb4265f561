"""An operation whose configurations go wrong in every way that a tuner has to survive.

``install()`` makes it known to this process; run as a program, this file is a tuner's worker that
knows it: ``Worker(key, command=WORKER)``. ``dying(...)`` is the command of one whose device dies.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clkiln.errors import DeviceError, LaunchError
from clkiln.kernels import SPECS
from clkiln.kernels.source import Source
from clkiln.kernels.spec import KernelSpec
from clkiln.kernels.types import (
    Argument,
    Array,
    Config,
    DeviceLimits,
    Geometry,
    Value,
    Variant,
    Workload,
)
from clkiln.tuner.trial import Bench, Outcome

WORKER = (sys.executable, str(Path(__file__)))

#: The configurations that a tuner finds, and how a trial of each ends. ``abort`` stands for a
#: compiler that does; ``greedy`` asks for more local memory than there is, ``hungry`` takes it.
ENDS = {
    "good": "ok",
    "slow": "ok",
    "abort": "crash",
    "segfault": "crash",
    "endless": "timeout",
    "syntax": "compile error",
    "greedy": "constraint",
    "hungry": "constraint",
    "past_end": "wrong result",
    "nan": "wrong result",
    "bucket": "wrong result",
}
#: Wrong results of which no tuner needs to hear, and what is said of each.
WRONG = {
    "past_end": "y: written past its end",
    "adds_past_end": "y: written past its end",
    "nan": "y: 1 of 185 not finite",
    "off": "y: relative L2 error .*, worst at \\[0, 36\\]",
    "unwritten": "y: 1 of 185 not finite",
    "bucket": "at m=[1-4]: y: relative L2 error",
    "uneven": "y: 9 of 185 not finite",
}

#: How trials and starts of workers end once a device has died.
DEATHS = ("abort", "hang", "launch", "nonsense", "gone")


def dying(after: int, file: Path, death: str) -> tuple[str, ...]:
    """A worker's command whose device dies after ``after`` trials, which ``file`` counts.

    It dies for good, for every worker: until the file is deleted.
    """
    return (*WORKER, str(after), str(file), death)


class PlantedSpec(KernelSpec):
    """Workload ``planted m n``: ``y = 2 x + column`` for ``m`` rows of ``n`` columns."""

    op = "planted"
    file = str(Path(__file__).with_suffix(".cl"))
    #: Set in a worker: only there a configuration may end the process.
    doomed = False

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        return {"HOW": tuple(ENDS), "LX": (1,)}

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        return how("slow")

    def local_memory(self, workload: Workload, config: Config) -> int:
        return 1 << 40 if config == how("greedy") else 0

    def kernel(self, workload: Workload, config: Config) -> str:
        return "planted"

    def source(self, workload: Workload, config: Config) -> Source:
        if config in (how("abort"), how("greedy")) and self.doomed:
            os.abort()
        return super().source(workload, config)

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        way = str(dict(config.params)["HOW"])
        return {
            f"HOW_{way.upper()}": 1,
            "LX": config["LX"],
            "N": workload.size("n"),
            "BUCKET": workload.size("m"),
            "LOCAL": 1 << 24,
        }

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        return Geometry.cover((workload.size("m") * workload.size("n"),), (config["LX"],))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        shape = workload.size("m"), workload.size("n")
        return (
            Argument("state", "state", "int32", (4,)),
            Argument("x", "input", "float32", shape, streams=True),
            Argument("y", "output", "float32", shape),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        m, n = workload.size("m"), workload.size("n")
        state = np.array([0, m, 0, 0], np.int32)
        return {"state": state, "x": rng.standard_normal((m, n), dtype=np.float32)}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        return {"y": 2 * inputs["x"].astype(np.float64) + np.arange(workload.size("n"))}

    def flops(self, workload: Workload) -> int:
        return 2 * workload.size("m") * workload.size("n")

    def bytes(self, workload: Workload) -> int:
        return 8 * workload.size("m") * workload.size("n")


def how(way: str) -> Config:
    return Config.of("buffer", HOW=way, LX=1)


def install() -> PlantedSpec:
    """Make the operation known to this process."""
    spec = PlantedSpec()
    SPECS[spec.op] = spec
    return spec


def _die(after: int, file: Path, death: str) -> None:
    """Let the device of this worker die with the trial behind the next ``after``."""
    if death == "gone" and _count(file) > after:
        raise DeviceError("the device is not there any more")
    trial = Bench.trial

    def mortal(bench: Bench, *asked: Any) -> Outcome:
        with file.open("a") as count:
            count.write(".")
        if _count(file) <= after:
            return trial(bench, *asked)
        if death == "hang":
            time.sleep(600)
        if death == "launch":
            raise LaunchError("launch failed: OUT_OF_RESOURCES (-5)")
        if death == "nonsense":
            return Outcome("wrong result", "y: 185 of 185 not finite")
        os.abort()

    Bench.trial = mortal  # type: ignore[method-assign]


def _count(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


if __name__ == "__main__":
    from clkiln.tuner.worker import main

    install().doomed = True
    if len(sys.argv) > 2:
        _die(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    main(sys.argv[-1])
