"""Every kernel under a simulator that sees races, uninitialised reads and stray accesses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import clk_oclgrind
import pytest
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


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the simulator said of each case; empty where all is well. One run, if none crashes."""
    driver = find_driver()
    if driver is None:
        pytest.skip("needs Oclgrind (Debian package oclgrind)")
    vendors = tmp_path_factory.mktemp("vendors")
    (vendors / "oclgrind.icd").write_text(f"{driver}\n")
    environment = os.environ | {
        "OCL_ICD_VENDORS": str(vendors),
        "OCLGRIND_DATA_RACES": "1",
        "OCLGRIND_UNINITIALIZED": "1",
    }
    reports: dict[str, str] = {}
    while True:
        done = subprocess.run(
            [sys.executable, clk_oclgrind.__file__, str(len(reports))],
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


def test_every_operation_has_tiny_workloads() -> None:
    assert set(TINY) == set(SPECS)


@pytest.mark.parametrize("op", sorted(SPECS))
def test_kernels_are_clean(reports: dict[str, str], op: str) -> None:
    cases = {name: text for name, text in reports.items() if name.split(" ")[0] == op}
    variants = {f'"variant":"{variant.name}"' for variant in SPECS[op].variants}
    assert all(any(variant in name for name in cases) for variant in variants)
    dirty = [f"{name}\n{text}" for name, text in cases.items() if text]
    assert not dirty, "\n\n".join(dirty)[:5000]


def test_a_missing_barrier_is_found(reports: dict[str, str]) -> None:
    assert "data race" in reports[clk_oclgrind.PLANTED]
