"""``clkiln kernels``: the table, one operation in detail, JSON, and no device at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

import clk_devices
import clk_engine
from clk_cli import Result
from clkiln.kernels import SPECS
from clkiln.kernels.capability import Capabilities
from clkiln.kernels.coding import DTYPES
from clkiln.kernels.types import Config, Workload
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
    assert "\x1b" not in result.out
    head, *rows = lines[: lines.index("")]
    rows = iter(rows)
    info = clk_engine.a_device().info
    for op, spec in SPECS.items():
        workload = Workload.parse(spec.example)
        for place, variant in enumerate(spec.variants):
            row = next(rows)
            words = row.split()
            assert row.startswith(op if place == 0 else " " * 18)
            assert words[place == 0] == variant.name
            of_variant = [c for c in spec.space(workload) if c.variant == variant.name]
            feasible = [c for c in of_variant if spec.check(workload, c, info) is None]
            assert words[-2:] == [f"{len(of_variant):,}", f"{len(feasible):,}"]
            if feasible:
                # In the example's own dtype; others may differ in the number of columns.
                assert "yes" in words
    assert next(rows, None) is None
    columns = head.split()[2:-2]
    assert columns[:3] == ["f32", "f16", "bf16"]
    legend = {line.split(":")[0]: line.split()[1:] for line in lines if line[1:2] == ":"}
    listed = [dtype for column in columns for dtype in legend.get(column, [column])]
    assert sorted(listed) == sorted(DTYPES)


def test_marks_and_reasons(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose largest allocation holds some of the table's dtypes and not others."""
    limits = {"max_alloc": 30 << 20, "local_memory": 8 << 10, "name": "Acme 2"}
    devices = clk_devices.numbered({"name": "Acme 1"}, limits)
    monkeypatch.setattr("clkiln.runtime.device.list_devices", lambda: devices)
    text = call("kernels", "--device", 1).out
    info = devices[1].info
    cells = Capabilities(info).table([Workload.parse(SPECS["embedding"].example)])
    runs = {c.dtype: c.config is not None for c in cells if c.variant.name == "buffer"}
    assert {*runs.values()} == {True, False}
    lines = text.splitlines()
    [row] = [line for line in lines if line.startswith("embedding")]
    columns = dict(zip(lines[0].split()[2:-2], row.split()[2:-2], strict=True))
    assert columns["f32"] == columns["f16"] == "no"
    quantised = [runs[dtype] for dtype in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")]
    assert columns["q"] == ("yes" if all(quantised) else f"{sum(quantised)}/6")
    cannot = " ".join(text.partition("Cannot run here:")[2].split())
    assert re.search(r"embedding buffer \(w: f32 f16 .*: w\.q .* > 31457280 bytes", cannot)
    assert "; nearest that runs: pieces of " in cannot
    data = json.loads(call("kernels", "--device", 1, "--json").out)
    for operation in data["operations"]:
        for variant in operation["variants"]:
            assert variant["dtypes"]
            for cell in variant["dtypes"]:
                workload = Workload.parse(cell["workload"])
                assert cell["runs"] == (cell["reason"] == "") == bool(cell["configuration"])
                if cell["runs"]:
                    config = Config.parse(json.dumps(cell["configuration"]))
                    assert SPECS[workload.op].check(workload, config, info) is None
                    assert cell["needs"]["largest"] <= info.max_alloc
                elif cell["nearest"]:
                    assert Workload.parse(cell["nearest"]["workload"]).op == workload.op
    [embedding] = [row for row in data["operations"] if row["name"] == "embedding"]
    assert {c["dtype"]: c["runs"] for c in embedding["variants"][0]["dtypes"]} == runs
    detail = " ".join(call("kernels", "embedding", "--device", 1).out.split())
    assert (
        "runs in w: " in detail and "not in w: f32 f16" in detail and "takes work-groups" in detail
    )


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
    table = " ".join(call("kernels", "--device", 1).out.split())
    assert "gemv image (w: all 14): needs images; nearest that runs: variant buffer" in table
    detail = " ".join(call("kernels", "gemv", "--device", 1).out.split())
    assert "not in w: all 14: needs images; nearest that runs: variant buffer" in detail


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
    assert all(not each["dtypes"] for row in data["operations"] for each in row["variants"])
    assert call("kernels", "--device", "gpu").code == 1
