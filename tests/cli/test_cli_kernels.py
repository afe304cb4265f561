"""``clkiln kernels``: the table, one operation in detail, JSON, and no device at all."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

import clk_devices
import clk_engine
from clk_cli import Result
from clkiln.kernels import SPECS
from clkiln.kernels.types import Workload
from clkiln.runtime.program import ProgramLoader

Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("built something")

    monkeypatch.setattr(ProgramLoader, "load", refuse)


def test_the_table(call: Call, device: str) -> None:
    result = call("kernels", "--device", device)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines[1 : 1 + len(SPECS)]] == list(SPECS)
    spec, info = SPECS["gemv"], clk_engine.a_device().info
    [row] = [line for line in lines if line.startswith("gemv ")]
    workload = Workload.parse(spec.example)
    space, feasible = len(list(spec.space(workload))), len(spec.feasible(workload, info))
    assert row.split()[-2:] == [f"{space:,}", f"{feasible:,}"]


@pytest.mark.parametrize("op", SPECS)
def test_details_fit_80_columns(call: Call, device: str, op: str) -> None:
    result = call("kernels", op, "--device", device)
    assert (result.code, result.err) == (0, "")
    assert [line for line in result.out.splitlines() if len(line) > 80] == []
    assert " ".join(SPECS[op].example.split()) in " ".join(result.out.split())


def test_what_a_device_cannot_run_and_why(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"images": False, "features": frozenset(), "local_memory": 1024}
    devices = clk_devices.numbered({"name": "Acme 1"}, {"name": "Acme 2", **small})
    monkeypatch.setattr("clkiln.runtime.device.list_devices", lambda: devices)
    text = call("kernels", "gemv", "--device", 1).out
    assert "cannot run here: the device lacks images" in text
    assert "> 1024 bytes" in text
    assert "lacks" not in call("kernels", "gemv", "--device", 0).out
    data = json.loads(call("kernels", "gemv", "--device", 1, "--json").out)
    assert data["device"]["name"] == "Acme 2"
    [operation] = data["operations"]
    buffer, image = operation["variants"]
    assert image["missing"] == ["images"] == image["requires"] and image["feasible"] == 0
    for variant in (buffer, image):
        ruled_out = sum(row["count"] for row in variant["infeasible"])
        assert variant["configurations"] == variant["feasible"] + ruled_out
    assert operation["feasible"] == buffer["feasible"] > 0
    assert buffer["parameters"]["LX"] == [1, 2, 4, 8, 16, 32]
    assert "(image)" in call("kernels", "--device", 1).out


def test_a_workload_of_ones_own(call: Call) -> None:
    text = "gemv n=896 k=896 w=q8_0 fuse=none bias=yes"
    [operation] = json.loads(call("kernels", "--workload", text, "--json").out)["operations"]
    assert operation["workload"] == "gemv bias=yes fuse=none k=896 n=896 w=q8_0"
    assert operation["example"] is False
    assert "gemv bias=yes" in call("kernels", "gemv", "--workload", text).out


def test_without_any_device(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clkiln.runtime.device.list_devices", list)
    result = call("kernels")
    assert result.code == 0 and "no OpenCL device" in result.err
    assert "feasible" not in result.out.lower()
    assert "configurations" in call("kernels", "gemm").out
    data = json.loads(call("kernels", "--json").out)
    assert data["device"] is None
    assert [row["name"] for row in data["operations"]] == list(SPECS)
    assert all(row["feasible"] is None for row in data["operations"])
    assert call("kernels", "--device", "gpu").code == 1
