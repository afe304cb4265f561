"""``clkiln check``: what it prints, what it ends with, and two devices against each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import clk_engine
import clk_sabotage
from clk_cli import Result
from clk_pocl import working
from clkiln.kernels import SPECS, rules
from clkiln.runtime.device import Device, list_devices

Call = Callable[..., Result]


@pytest.fixture
def place(tmp_path: Path, device: str) -> list[str]:
    """Options that name a device and a cache file of the test's own."""
    return ["--device", device, "--cache", str(clk_engine.own_cache(tmp_path / "x.sqlite"))]


def test_a_sound_device(call: Call, model: Path, place: list[str]) -> None:
    result = call("check", model, *place, "--repeat", 1)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split()[:4] == ["operation", "variant", "launches", "compared"]
    assert lines[-1].startswith("verdict  right (")
    assert all(len(line) <= 80 for line in lines)
    assert not result.lines("warning: banned")


def test_a_wrong_kernel_is_said_banned_and_listed(
    call: Call, model: Path, place: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code is 0: what runs from now on is right. Scripts look at ``banned``."""
    sound = call("run", model, "Hi", "--temp", 0, "-n", 4, *place)
    clk_sabotage.plant(
        monkeypatch, "argmax", where=clk_sabotage.variant("buffer"),
        behind="\n  if (item == 0) out[0] ^= 1;\n",
    )  # fmt: skip
    wrong = call("run", model, "Hi", "--temp", 0, "-n", 4, *place)
    assert wrong.out != sound.out
    result = call("check", model, *place, "--repeat", 1, "--json")
    assert result.code == 0
    data = json.loads(result.out)
    assert data["ok"] and data["faults"][0]["op"] == "argmax"
    assert [each["what"] for each in data["banned"]] == ["argmax=buffer"]
    assert result.lines("warning: banned for this driver, as it is wrong: argmax=buffer")
    listed = call("cache", "rules", *place).out
    assert "argmax=buffer" in listed and "(clkiln check, 20" in " ".join(listed.split())
    mended = call("run", model, "Hi", "--temp", 0, "-n", 4, *place, "--verbose")
    assert mended.out == sound.out
    assert "argmax=buffer is banned for this driver" in mended.err


def test_what_cannot_be_replaced_ends_with_1(
    call: Call, model: Path, place: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MOST_WRONG", 2)
    clk_sabotage.plant(
        monkeypatch, "argmax", only="buffer", behind="\n  if (item == 0) out[0] ^= 1;\n"
    )
    result = call("check", model, *place, "--repeat", 1)
    assert result.code == 1
    assert "WRONG: nothing is left that is right" in " ".join(result.out.split())
    assert all(len(line) <= 80 or "{" in line for line in result.out.splitlines())


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A second device: the first one's compiler under another name, and with a GPU's parameters."""
    one = clk_engine.a_device()
    info = replace(one.info, index=99, name="Twin 1000", type="gpu")
    found = [*list_devices(), Device(info, one.handle)]
    monkeypatch.setattr("clkiln.runtime.device.list_devices", lambda: found)
    return found[-1]


def against(call: Call, model: Path, cache: Path, two: Device, *options: str) -> Result:
    """The tests' device, compared with ``two``."""
    device = ["--device", clk_engine.a_device().info.selector]
    own = ["--cache", clk_engine.own_cache(cache)]
    return call("check", model, *device, *own, "--against", two.info.selector, *options)


def test_sound_devices_part_nowhere(call: Call, model: Path, tmp_path: Path, twin: Device) -> None:
    """One of another driver where there is one, so that what two compilers make is compared."""
    [one, *others] = working()
    unlike = [device for device in others if is_pocl(device) != is_pocl(one)]
    result = against(call, model, tmp_path / "x.sqlite", [*unlike, *others, twin][0])
    assert result.code == 0 and "they part nowhere" in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines())


def test_where_two_devices_part(
    call: Call, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: Device
) -> None:
    """Of a kernel that is wrong on one, the reference says on which."""
    spec, one = SPECS["attention_decode"], clk_engine.a_device().info
    clk_sabotage.plant(
        monkeypatch, spec.op, behind="\n  if (item == 0) out[head * HEAD_DIM] += 1.0f;\n",
        where=lambda w, config: spec.safe(w, one) != config == spec.safe(w, twin.info),
    )  # fmt: skip
    result = against(call, model, tmp_path / "x.sqlite", twin, "--json")
    data = json.loads(result.out)
    assert result.code == 1 and not data["ok"]
    first = data["first"]
    assert first["op"] == "attention_decode" and first["place"].startswith("blk.0")
    right, wrong = first["errors"]
    assert right < 1e-5 and wrong > 1e-3
    assert sum(not step["ok"] for step in data["steps"]) >= 2, "each layer's, and no other step"
    assert {s["op"] for s in data["steps"] if not s["ok"]} == {"attention_decode"}


def test_a_device_against_itself(call: Call, model: Path, place: list[str], device: str) -> None:
    result = call("check", model, *place, "--against", device)
    assert result.code == 2 and "is the same device" in result.err


def test_two_devices_are_compared_once(call: Call, model: Path, place: list[str]) -> None:
    result = call("check", model, *place, "--against", "cpu", "--repeat", 3)
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: --against goes without --repeat\n"


def is_pocl(device: Device) -> bool:
    return "PoCL" in device.info.platform_version
