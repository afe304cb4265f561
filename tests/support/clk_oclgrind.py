"""Runs every kernel under Oclgrind; a program of its own, because a driver is chosen at the start.

Before each case it writes a line to standard error, so that what the simulator reports there (data
races, uninitialised reads, accesses out of bounds) can be told apart by case.

Arguments: which set to run (few, many, mutants), the kind of variants (buffer, image), how many
cases to leave out (the simulator itself crashes on some vector expressions, and one crash should
not hide what follows it), and the operations.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from clk_barriers import mutants
from clk_cases import TINY, sample, small_tiles
from clk_run import Limits, Runner
from clkiln.kernels import SPECS
from clkiln.kernels.softmax.spec import SoftmaxSpec
from clkiln.kernels.source import Source
from clkiln.kernels.spec import KernelSpec
from clkiln.kernels.types import Config, Workload
from clkiln.runtime.opencl import cl

CASE = "case: "
WRONG = "wrong result: "
PLANTED = "planted race"

#: Optimised code has instructions that Oclgrind does not know (freeze) or crashes on.
OPTIONS = ("-cl-opt-disable",)


def find_driver() -> Path | None:
    """The OpenCL driver in Oclgrind's package, beside its program."""
    program = shutil.which("oclgrind")
    if program is None:
        return None
    prefix = Path(program).resolve().parents[1]
    patterns = ("lib*/oclgrind/liboclgrind-rt-icd.so", "lib*/*/oclgrind/liboclgrind-rt-icd.so")
    return next((path for pattern in patterns for path in sorted(prefix.glob(pattern))), None)


def simulator(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What a process runs in that shall see Oclgrind, which reports races; ``folder`` is empty.

    Skips where it is not installed: it is a Debian package, and no other system has it.
    """
    driver = find_driver()
    if driver is None:
        pytest.skip("needs Oclgrind (Debian package oclgrind)")
    (folder / "oclgrind.icd").write_text(f"{driver}\n")
    return {
        **environment,
        "OCL_ICD_VENDORS": str(folder),
        "OCLGRIND_DATA_RACES": "1",
        "OCLGRIND_MAX_ERRORS": "100000",  # past this number it is silent
    }


class RacySoftmax(SoftmaxSpec):
    """Softmax without the barrier that lets two reductions share their scratch."""

    def source(self, workload: Workload, config: Config) -> Source:
        source = super().source(workload, config)
        text = source.text.replace("barrier(CLK_LOCAL_MEM_FENCE);", "", 1)
        assert text != source.text
        return replace(source, text=text)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def try_case(runner: Runner, spec: KernelSpec, workload: Workload, config: Config) -> None:
    inputs = spec.inputs(workload, np.random.default_rng(7))
    try:
        runner.check(spec, workload, config, inputs)
    except AssertionError as error:
        say(WRONG + str(error).splitlines()[0])


#: Configurations by chance of each variant, beside the corners of its space.
RANDOM = {"few": 1, "many": 20}


def cases(
    limits: Limits, kind: str, random: int, ops: Sequence[str]
) -> Iterator[tuple[str, KernelSpec, Workload, Config]]:
    """Every case of ``ops`` with its name, the one that has a race last; the same in every run."""
    for op in ops:
        spec, rng = SPECS[op], np.random.default_rng([7, *op.encode()])
        for text in TINY.get(op, ()):
            workload = Workload.parse(text)
            chosen = sample(spec, workload, limits, rng, random)
            for config in chosen + small_tiles(spec, workload, limits, rng):
                if spec.variant(config.variant).kind == kind:
                    yield f"{workload} {config}", spec, workload, config
    racy = Workload.parse("softmax m=2 n=67")
    yield PLANTED, RacySoftmax(), racy, Config.of("buffer", LX=16, V=1)


def main(which: str, kind: str, skipped: int, ops: Sequence[str]) -> None:
    (device,) = (
        device
        for platform in cl.get_platforms()
        if platform.name == "Oclgrind"
        for device in platform.get_devices()
    )
    runner = Runner(device, OPTIONS)
    if which == "mutants":
        chosen = mutants(runner.limits, kind, ops)
    else:
        chosen = cases(runner.limits, kind, RANDOM[which], ops)
    for name, spec, workload, config in islice(chosen, skipped, None):
        say(CASE + name)
        try_case(runner, spec, workload, config)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
