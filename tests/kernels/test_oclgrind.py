"""Every kernel under a simulator that sees races, uninitialised reads and stray accesses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

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


def run_cases(environment: dict[str, str], which: str, kind: str, ops: list[str]) -> dict[str, str]:
    """What the simulator said of each case; empty where all is well. One run, if none crashes."""
    reports: dict[str, str] = {}
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
        assert cases, f"ended with {done.returncode} before the first case: {before}"
        for case in cases:
            name, _, text = case.partition("\n")
            reports[name] = text.strip()
        if done.returncode == 0:
            return reports
        reports[name] += f"\nthe simulator ended with {done.returncode}"


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the simulator runs in, by kind of variant."""
    environment = clk_oclgrind.simulator(os.environ, tmp_path_factory.mktemp("vendors"))
    # It takes what an image is created with for uninitialised.
    return {"buffer": environment | {"OCLGRIND_UNINITIALIZED": "1"}, "image": environment}


Reports = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def run_set(
    environments: dict[str, dict[str, str]], request: pytest.FixtureRequest
) -> Callable[[str], Reports]:
    """What the simulator said, by kind of variant and case, of the operations that are tested."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    tested = {call.params.get("op") for call in calls if call is not None}
    ops = [op for op in SPECS if op in tested]
    return lambda which: {
        kind: run_cases(found, which, kind, ops) for kind, found in environments.items()
    }


@pytest.fixture(scope="module")
def few(run_set: Callable[[str], Reports]) -> Reports:
    return run_set("few")


@pytest.fixture(scope="module")
def many(run_set: Callable[[str], Reports]) -> Reports:
    return run_set("many")


@pytest.fixture(scope="module")
def mutants(run_set: Callable[[str], Reports]) -> Reports:
    return run_set("mutants")


def test_every_operation_has_tiny_workloads() -> None:
    assert set(TINY) == set(SPECS)


KINDS = [(op, kind) for op in SPECS for kind in sorted({v.kind for v in SPECS[op].variants})]


@pytest.mark.parametrize(("op", "kind"), KINDS)
def test_kernels_are_clean(few: Reports, op: str, kind: str) -> None:
    assert_clean(few[kind], op)


@pytest.mark.parametrize("kind", ["buffer", "image"])
def test_a_missing_barrier_is_found(few: Reports, kind: str) -> None:
    """The last case of each run, so the simulator still reported at its end."""
    assert "data race" in few[kind][clk_oclgrind.PLANTED]


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("op", "kind"), KINDS)
def test_many_configurations_are_clean(many: Reports, op: str, kind: str) -> None:
    """The corners of each variant's space and twenty configurations by chance."""
    assert_clean(many[kind], op)
    assert "data race" in many[kind][clk_oclgrind.PLANTED]


def assert_clean(reports: dict[str, str], op: str) -> None:
    cases = {name: text for name, text in reports.items() if name.split(" ")[0] == op}
    assert cases
    dirty = [f"{name}\n{text}" for name, text in cases.items() if text]
    assert not dirty, "\n\n".join(text[:1000] for text in dirty[:5])


BARRIERS = [(op, str(barrier)) for op in SPECS for barrier in clk_barriers.barriers(SPECS[op])]


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("op", "barrier"), BARRIERS)
def test_every_barrier_is_missed(mutants: Reports, op: str, barrier: str) -> None:
    """Taken out, each is seen by the simulator as a race; or the table says why it is not."""
    start = f"{op} without {barrier}: "
    cases = {**mutants["buffer"], **mutants["image"]}
    found = [text for name, text in cases.items() if name.startswith(start)]
    assert found, f"no configuration of {op} has enough work-items to miss {barrier}"
    caught = any("data race" in text for text in found)
    assert caught != ((op, barrier) in NOT_NEEDED), f"{start}{len(found)} cases, caught: {caught}"
