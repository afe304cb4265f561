"""``clkiln check``: what it prints, what it ends with, and two devices against each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import clk_engine
import clk_sabotage
from clk_cli import Result
from clk_pocl import working
from clkiln.kernels import rules
from clkiln.runtime.device import Device

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


def test_two_devices(
    call: Call, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """Sound ones part nowhere; of a kernel that is wrong on one, the reference says on which."""
    one = clk_engine.a_device()
    others = [device for device in working() if device.info.index != one.info.index]
    if not others:
        # A device against itself is refused, and no stand-in has a compiler of its own.
        pytest.skip("comparing needs two drivers that compile: pocl-opencl-icd, clkiln[intel]")
    unlike = (device for device in others if is_pocl(device) != is_pocl(one))
    two, cache = next(unlike, others[0]), clk_engine.own_cache(tmp_path / "x.sqlite")
    options = ["--device", one.info.selector, "--cache", cache]
    options += ["--against", two.info.selector]
    result = call("check", model, *options)
    assert result.code == 0 and "they part nowhere" in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines())
    if is_pocl(one) == is_pocl(two):
        return
    clk_sabotage.plant(
        monkeypatch, "attention_decode", behind="\n#ifdef POCL_DEVICE_ADDRESS_BITS\n"
        "  if (item == 0) out[head * HEAD_DIM] += 1.0f;\n#endif\n",
    )  # fmt: skip
    result = call("check", model, *options, "--json")
    data = json.loads(result.out)
    assert result.code == 1 and not data["ok"]
    first = data["first"]
    assert first["op"] == "attention_decode" and first["place"].startswith("blk.0")
    right, wrong = sorted(first["errors"])
    assert right < 1e-5 and wrong > 1e-3
    assert (first["errors"][0] == wrong) == is_pocl(one)
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
