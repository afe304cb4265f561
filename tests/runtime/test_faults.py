"""Devices that compile nothing: known from their words, found by trying, and never the default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clk_devices import make_info, numbered
from clk_given import posix
from clk_pocl import a_device
from clkiln import trust
from clkiln.cache.store import Store
from clkiln.errors import BuildError, DeviceError
from clkiln.runtime import faults, program
from clkiln.runtime.context import Context
from clkiln.runtime.device import default_device, list_devices, select_device
from clkiln.runtime.faults import check_device, known_fault, try_device
from clkiln.runtime.program import ProgramLoader

POCL = "OpenCL 3.0 PoCL HSTR: pthread-"
BROKEN = {"type": "cpu", "device_version": f"{POCL}x86_64-unknown-linux-gnu-generic"}
BAD_KERNELS = {
    "does not compile": "kernel void small(global uint *out) { no_such_function(out); }",
    "does not build at all": "#error out of order",
    "writes something else": "kernel void small(global uint *out) { out[get_global_id(0)] = 1; }",
}


@dataclass(frozen=True)
class Text:
    text: str
    kernel: str = "f"
    options: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return self.text


SOUND, WRONG = Text("kernel void f(global int *a) { *a = 1; }"), Text("kernel void f( {")


@pytest.fixture(autouse=True)
def own_folder(cache_dir: Path) -> Iterator[None]:
    """No verdict of these tests outlives them."""
    yield


@pytest.mark.parametrize(
    ("version", "broken"),
    [
        (BROKEN["device_version"], True),
        (f"{POCL}x86_64-pc-linux-gnu-generic", True),
        (f"{POCL}x86_64-pc-linux-gnu-skylake-avx512", False),
        (f"{POCL}x86_64-unknown-linux-gnu-znver3", False),
        # clang knows this name there.
        (f"{POCL}aarch64-unknown-linux-gnu-generic", False),
        ("OpenCL 3.0 x86_64-acme-generic", False),
    ],
)
def test_what_pocl_says_of_its_target(version: str, broken: bool) -> None:
    assert bool(known_fault(make_info(device_version=version))) == broken


def test_trying_agrees_with_what_is_known() -> None:
    """Devices that are here: nothing that works is left out, and nothing is worse than known."""
    found = {str(d.info): (known_fault(d.info), try_device(d)) for d in list_devices()}
    assert found and all(bool(known) == bool(tried) for known, tried in found.values()), found


def test_a_device_that_works_leaves_nothing_behind(cache_dir: Path) -> None:
    assert try_device(a_device()) == ""
    assert not list(cache_dir.rglob("*.fault"))


@pytest.mark.parametrize("how", BAD_KERNELS)
def test_what_was_found_by_trying_is_kept_until_it_is_mended(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    device = a_device()
    with monkeypatch.context() as broken:
        broken.setattr(faults, "_KERNEL", BAD_KERNELS[how])
        why = try_device(device)
        assert why and "\n" not in why
        assert known_fault(device.info) == why
        with pytest.raises(DeviceError, match="not even a small kernel works on") as error:
            check_device(device)
        assert device.info.name in str(error.value) and "clkiln[intel]" in str(error.value)
    check_device(device)
    assert known_fault(device.info) == ""


def test_nothing_known_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_KERNEL", "#error")
    check_device(a_device())


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLKILN_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(faults, "_KERNEL", "#error")
    assert try_device(a_device())
    assert known_fault(a_device().info) == ""


@posix
def test_a_folder_that_others_can_write(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No verdict of theirs chooses the device, and no link of theirs is written through."""
    info, target = a_device().info, cache_dir.parent / "mine"
    target.write_text("mine")
    (cache_dir / "drivers").mkdir()
    fault = cache_dir / "drivers" / f"{info.driver_key}.fault"
    fault.write_text("theirs")
    assert known_fault(info) == "theirs"
    (cache_dir / "drivers").chmod(0o777)
    assert known_fault(info) == ""
    fault.unlink()
    fault.symlink_to(target)
    monkeypatch.setattr(faults, "_KERNEL", "#error")
    assert try_device(a_device())
    assert target.read_text() == "mine" and fault.is_symlink()


# -- the default ---------------------------------------------------------------------------------


def test_the_default_compiles_where_another_does_not() -> None:
    devices = numbered({**BROKEN, "compute_units": 64}, {"type": "cpu"}, {"type": "cpu"})
    assert default_device(devices)[0] is devices[1]
    assert select_device("cpu", devices) is devices[1]
    chosen, why = default_device(devices[:2])
    assert (chosen, why) == (devices[1], "the only device; no kernel compiles on Acme 1000")
    # One that was asked for is taken: its own error says more.
    assert select_device("0", devices) is devices[0]


def test_a_speed_that_was_measured_before_it_broke_does_not_count() -> None:
    devices = numbered(BROKEN, {"type": "cpu"}, {"type": "cpu", "compute_units": 2})
    assert default_device(devices, {devices[0].info.driver_key: 1e9})[0] is devices[1]


def test_where_nothing_compiles_the_rule_still_holds() -> None:
    devices = numbered(BROKEN, {**BROKEN, "compute_units": 64})
    assert default_device(devices)[0] is devices[1]
    assert default_device(devices[:1]) == (devices[0], "the only device")


# -- programs ------------------------------------------------------------------------------------


def test_a_program_tells_its_own_fault_from_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    device = a_device()
    with Context(device) as context, pytest.raises(BuildError, match="bad does not compile"):
        ProgramLoader(context).load(WRONG, "bad")
    monkeypatch.setattr(faults, "_KERNEL", "#error out of order")
    with Context(device) as context, pytest.raises(DeviceError, match="not even a small kernel"):
        ProgramLoader(context).load(WRONG, "bad")
    assert known_fault(device.info), "the next start takes another device"


def test_a_device_that_has_compiled_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by another loader: a search has one for each of thousands, and many do not compile."""
    monkeypatch.setattr(program, "try_device", lambda device: pytest.fail("tried"))
    with Context(a_device()) as context:
        ProgramLoader(context).load(SOUND, "good")
        with pytest.raises(BuildError, match="bad does not compile"):
            ProgramLoader(context).load(WRONG, "bad")


def test_a_verdict_makes_folders_for_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one that everybody can write clkiln would refuse its own cache file."""
    monkeypatch.setenv("CLKILN_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setattr(faults, "_KERNEL", "#error")
    before = os.umask(0)
    try:
        assert try_device(a_device()) and known_fault(a_device().info)
    finally:
        os.umask(before)
    trust.check(tmp_path / "own" / "drivers")
    Store.open(tmp_path / "own" / "x.sqlite").close()


def test_what_the_compiler_did_not_say_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that was lost may be back next time."""
    unknown = "kernel void other(global uint *out) { out[get_global_id(0)] = 1; }"
    monkeypatch.setattr(faults, "_KERNEL", unknown)
    assert "INVALID_KERNEL_NAME" in try_device(a_device())
    assert known_fault(a_device().info) == ""
