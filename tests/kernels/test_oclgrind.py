"""Every kernel under a simulator that sees races, uninitialised reads and stray accesses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import pytest

import clk_barriers
import clk_oclgrind
from clk_cases import TINY
from clkiln.kernels import SPECS

#: For one run of the simulator: the default set, or one of the long ones.
SECONDS = {"few": 300, "many": 3600, "mutants": 3600}

#: Barriers that nothing would miss in a kernel, by operation, and why they are there all the same.
ONLY_ONE = "the kernel's only reduction: nobody reads the scratch of one before it"
NOT_NEEDED = {("gemv", "reduce.clh 1"): ONLY_ONE, ("rmsnorm", "reduce.clh 1"): ONLY_ONE}


#: What the simulator said by case; empty where all is well.
Reports = dict[str, str]


def run_cases(environment: dict[str, str], which: str, kind: str, *ops: str) -> Reports:
    """The set ``which`` of operations, and a race at its end. One process, if none crashes."""
    reports: Reports = {}
    while True:
        done = subprocess.run(
            [sys.executable, clk_oclgrind.__file__, which, kind, str(len(reports)), *ops],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS[which],
            check=False,
        )
        before, *cases = done.stderr.split(clk_oclgrind.CASE)
        assert cases or done.returncode == 0, (
            f"ended with {done.returncode} before a case: {before}"
        )
        for case in cases:
            name, _, text = case.partition("\n")
            reports[name] = text.strip()
        if done.returncode == 0:
            return reports
        reports[name] += f"\nthe simulator ended with {done.returncode}"


Run = Callable[..., Reports]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """:func:`run_cases` in the simulator, of a kind of variants."""
    environment = clk_oclgrind.simulator(os.environ, tmp_path_factory.mktemp("vendors"))
    # It takes what an image is created with for uninitialised.
    environments = {"buffer": environment | {"OCLGRIND_UNINITIALIZED": "1"}, "image": environment}
    return lambda which, kind, *ops: run_cases(environments[kind], which, kind, *ops)


@pytest.fixture(scope="module")
def mutants(run: Run) -> Callable[[str], Reports]:
    """An operation without each of its barriers in turn."""
    return cache(lambda op: run("mutants", "buffer", op) | run("mutants", "image", op))


def test_every_operation_has_tiny_workloads() -> None:
    assert set(TINY) == set(SPECS)


KINDS = [(op, kind) for op in SPECS for kind in sorted({v.kind for v in SPECS[op].variants})]


@pytest.mark.parametrize(("op", "kind"), KINDS)
def test_kernels_are_clean(run: Run, op: str, kind: str) -> None:
    assert_clean(run("few", kind, op), op)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("op", "kind"), KINDS)
def test_many_configurations_are_clean(run: Run, op: str, kind: str) -> None:
    """The corners of each variant's space and twenty configurations by chance."""
    assert_clean(run("many", kind, op), op)


def assert_clean(reports: Reports, op: str) -> None:
    """Nothing was said of ``op``, by a simulator that still saw the race at the end."""
    assert "data race" in reports.pop(clk_oclgrind.PLANTED)
    assert {name.split(" ")[0] for name in reports} == {op}
    dirty = [f"{name}\n{text}" for name, text in reports.items() if text]
    assert not dirty, "\n\n".join(text[:1000] for text in dirty[:5])


BARRIERS = [(op, str(barrier)) for op in SPECS for barrier in clk_barriers.barriers(SPECS[op])]


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("op", "barrier"), BARRIERS)
def test_every_barrier_is_missed(mutants: Callable[[str], Reports], op: str, barrier: str) -> None:
    """Taken out, each is seen by the simulator as a race; or the table says why it is not."""
    start = f"{op} without {barrier}: "
    found = [text for name, text in mutants(op).items() if name.startswith(start)]
    assert found, f"no configuration of {op} has enough work-items to miss {barrier}"
    caught = any("data race" in text for text in found)
    assert caught != ((op, barrier) in NOT_NEEDED), f"{start}{len(found)} cases, caught: {caught}"
