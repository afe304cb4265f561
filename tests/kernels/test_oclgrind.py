"""Every kernel under a simulator that sees races, uninitialised reads and stray accesses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import clk_oclgrind
from clk_cases import TINY
from clkiln.kernels import SPECS

SECONDS = 300


def find_driver() -> Path | None:
    """The OpenCL driver in Oclgrind's package, beside its program."""
    program = shutil.which("oclgrind")
    if program is None:
        return None
    prefix = Path(program).resolve().parents[1]
    patterns = ("lib*/oclgrind/liboclgrind-rt-icd.so", "lib*/*/oclgrind/liboclgrind-rt-icd.so")
    return next((path for pattern in patterns for path in sorted(prefix.glob(pattern))), None)


def run_cases(environment: dict[str, str], kind: str) -> dict[str, str]:
    """What the simulator said of each case; empty where all is well. One run, if none crashes."""
    reports: dict[str, str] = {}
    while True:
        done = subprocess.run(
            [sys.executable, clk_oclgrind.__file__, kind, str(len(reports))],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
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
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the simulator said, by kind of variant and case."""
    driver = find_driver()
    if driver is None:
        pytest.skip("needs Oclgrind (Debian package oclgrind)")
    vendors = tmp_path_factory.mktemp("vendors")
    (vendors / "oclgrind.icd").write_text(f"{driver}\n")
    environment = os.environ | {
        "OCL_ICD_VENDORS": str(vendors),
        "OCLGRIND_DATA_RACES": "1",
        "OCLGRIND_MAX_ERRORS": "100000",  # past this number it is silent
    }
    # It takes what an image is created with for uninitialised.
    return {
        "buffer": run_cases(environment | {"OCLGRIND_UNINITIALIZED": "1"}, "buffer"),
        "image": run_cases(environment, "image"),
    }


def test_every_operation_has_tiny_workloads() -> None:
    assert set(TINY) == set(SPECS)


@pytest.mark.parametrize(
    ("op", "kind"),
    [(op, kind) for op in SPECS for kind in sorted({v.kind for v in SPECS[op].variants})],
)
def test_kernels_are_clean(reports: dict[str, dict[str, str]], op: str, kind: str) -> None:
    cases = {name: text for name, text in reports[kind].items() if name.split(" ")[0] == op}
    assert cases
    dirty = [f"{name}\n{text}" for name, text in cases.items() if text]
    assert not dirty, "\n\n".join(text[:1000] for text in dirty[:5])


@pytest.mark.parametrize("kind", ["buffer", "image"])
def test_a_missing_barrier_is_found(reports: dict[str, dict[str, str]], kind: str) -> None:
    """The last case of each run, so the simulator still reported at its end."""
    assert "data race" in reports[kind][clk_oclgrind.PLANTED]
