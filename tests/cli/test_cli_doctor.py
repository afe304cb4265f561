"""``clkiln doctor``: a sound machine, and whatever may be broken; it never crashes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clk_cache
import clk_cli
import clk_devices
import clk_engine
from clk_cli import Result
from clk_given import posix
from clkiln.cache.paths import cache_file
from clkiln.cache.store import Store
from clkiln.cli import checks, doctor, hints
from clkiln.cli.checks import Check, Machine

Call = Callable[..., Result]


def row(*, fault: str = "", **changes: Any) -> dict[str, Any]:
    """A device as ``clkiln devices --json`` lists it."""
    info = clk_devices.make_info(**changes)
    path = cache_file(info.name, info.platform)
    return {**info.as_dict(), "cache_file": str(path), "fault": fault}


def said(found: list[Check], status: str) -> str:
    return "\n".join(f"{c.topic}: {c.text} -> {c.todo}" for c in found if c.status == status)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes ``look`` find given devices."""

    def set_devices(*rows: dict[str, Any]) -> None:
        monkeypatch.setattr(checks, "look", lambda: Machine(rows))

    return set_devices


def test_a_sound_machine(call: Call, cache_dir: Path) -> None:
    result = call("doctor")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("ok       versions: clkiln ")
    assert lines[-1].startswith("0 problems, ")
    name = " ".join(clk_engine.a_device().info.name.split())
    assert name in " ".join(result.out.split())
    long = [line for line in lines if len(line) > 80]
    assert all("/" in line or ".sqlite" in line for line in long), "only paths may be longer"
    assert list(cache_dir.iterdir()) == [], "looking leaves nothing behind"


def test_as_json(call: Call, cache_dir: Path) -> None:
    result = call("doctor", "--json")
    data = json.loads(result.out)
    assert (result.code, result.err, data["ok"]) == (0, "", True)
    assert {check["status"] for check in data["checks"]} <= {"ok", "note"}
    assert {"versions", "drivers", "devices", "cache", "models"} <= {
        check["topic"] for check in data["checks"]
    }
    assert all(set(check) == {"topic", "status", "text", "todo"} for check in data["checks"])


def test_no_device(call: Call, machine: Callable[..., None]) -> None:
    machine()
    result = call("doctor")
    assert result.code == 1 and "problem  devices: there is no OpenCL device" in result.out
    assert "pip install 'clkiln[pocl]'" in result.out
    assert json.loads(call("doctor", "--json").out)["ok"] is False


def test_a_device_that_compiles_nothing(
    call: Call, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it is a problem; beside one that works only where it is asked for."""
    broken, sound = row(index=0, fault="unknown processor"), row(index=1, name="Acme 2")
    machine(broken)
    result = call("doctor")
    text = " ".join(result.out.split())
    assert result.code == 1 and "problem devices: 0: Acme 1000" in text
    assert "not even a small kernel works: unknown processor -> install another driver" in text
    machine(broken, sound)
    result = call("doctor")
    text = " ".join(result.out.split())
    assert result.code == 0 and "note devices: 0: Acme 1000" in text
    assert "none measured" not in text, "there is one to choose from"
    monkeypatch.setattr(
        "clkiln.runtime.device.list_devices",
        lambda: clk_devices.numbered({}, {"name": "Acme 2"}),
    )
    monkeypatch.setenv("CLKILN_DEVICE", "0")
    result = call("doctor")
    assert result.code == 1 and "CLKILN_DEVICE: no kernel works on Acme 1000" in result.out
    monkeypatch.setenv("CLKILN_DEVICE", "1")
    assert call("doctor").code == 0


def test_a_compiler_that_ends_its_process(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices are listed all the same."""
    rows = json.dumps([row()])
    script = f"import os, sys; '--try' in sys.argv and os.abort(); print({rows!r})"
    monkeypatch.setattr(checks, "LIST_DEVICES", (sys.executable, "-c", script))
    result = call("doctor")
    text = " ".join(result.out.split())
    assert result.code == 1 and "ok devices: 0: Acme 1000" in text
    assert "compiling a small kernel on each device: a driver ended the process" in text


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("import os; os.abort()", "a driver ended the process (signal 6)"),
        ("import time; time.sleep(30)", "did not end within 0 s"),
        ("import sys; sys.exit('error: no library')", "listing the devices failed: error: no"),
        ("print('no JSON')", "listing the devices failed"),
        ("", "listing the devices failed"),
    ],
)
def test_drivers_that_break_the_listing(
    call: Call, monkeypatch: pytest.MonkeyPatch, script: str, text: str
) -> None:
    monkeypatch.setattr(checks, "LIST_DEVICES", (sys.executable, "-c", script))
    monkeypatch.setattr(checks, "PATIENCE", 0.4 if "sleep" in script else 60.0)
    result = call("doctor")
    assert result.code == 1 and text in " ".join(result.out.split())
    assert "versions: clkiln" in result.out and "cache:" in result.out, "the rest is said still"


def test_broken_icd_files(cache_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vendors"
    folder.mkdir()
    (folder / "gone.icd").write_text("/nowhere/libgone.so\n")
    (folder / "binary.icd").write_bytes(b"\xff\xfe\x00")
    text = tmp_path / "libnone.so"
    text.write_text("no library at all")
    (folder / "text.icd").write_text(f"{text}\n")
    process = clk_cli.start("doctor", "--json", env={"OCL_ICD_VENDORS": str(folder)})
    out, err = process.communicate(timeout=60)
    data = json.loads(out)
    assert err == b"" and process.returncode in (0, 1)
    notes = " ".join(check["text"] for check in data["checks"] if check["status"] == "note")
    assert "gone.icd names /nowhere/libgone.so, which is not there" in notes
    assert "binary.icd cannot be read" in notes


def test_a_vendors_folder_that_is_not_there(
    call: Call, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCL_ICD_VENDORS", "/no/such/folder")
    machine(row())
    result = call("doctor")
    assert "OCL_ICD_VENDORS names /no/such/folder" in " ".join(result.out.split())
    assert "-> unset OCL_ICD_VENDORS" in result.out


def test_folders_that_cannot_be_used(
    call: Call, machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(row())
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("CLKILN_CACHE_DIR", str(blocked / "cache"))
    monkeypatch.setenv("CLKILN_MODELS_DIR", str(blocked))
    result = call("doctor")
    text = " ".join(result.out.split())
    assert result.code == 0, "that prevents no run"
    assert f"{blocked}/cache cannot be made, as {blocked} is no folder" in text
    assert "no model can be fetched" in text
    assert blocked.read_text() == "a file where a folder should be"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("CLKILN_CACHE_DIR", str(tmp_path / "shut"))
    assert f"{tmp_path}/shut cannot be written: nothing" in said(doctor.examine(), "note")


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_cache_folder_that_others_can_write(
    call: Call, machine: Callable[..., None], cache_dir: Path, mode: int
) -> None:
    """It is not used, and that is said with what mends it."""
    machine(row())
    cache_dir.chmod(mode)
    result = call("doctor")
    text = " ".join(result.out.split())
    assert result.code == 0 and f"a file in {cache_dir} is not used, as" in text
    assert "nothing that is tuned or compiled is kept" in text
    assert "name another folder in CLKILN_CACHE_DIR" in text
    assert f"chmod go-w {cache_dir}" in text or mode == 0o1777
    assert "ok cache:" not in text
    cache_dir.chmod(0o700)
    assert "ok cache:" in " ".join(call("doctor").out.split())


def test_little_room(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    usage = type("Usage", (), {"free": 5 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    found = list(checks.check_folders(Machine(())))
    assert {check.status for check in found} == {"note"}
    assert "5.00 MiB free" in found[0].text and "make room" in found[0].todo


def test_cache_files(call: Call, cache_dir: Path, machine: Callable[..., None]) -> None:
    machine(row())
    (cache_dir / "sound.sqlite").write_bytes(clk_cache.filled())
    (cache_dir / "damaged.sqlite").write_bytes(clk_cache.filled()[:9000])
    (cache_dir / "diary.sqlite").write_text("Dear diary")
    before = {path: path.read_bytes() for path in cache_dir.iterdir()}
    result = call("doctor")
    text = " ".join(result.out.split())
    assert result.code == 0
    assert "30 kernels tuned, 11 programs" in text
    for name in ("damaged", "diary"):
        assert f"clkiln cache verify --cache {cache_dir / name}.sqlite" in text
    assert {path: path.read_bytes() for path in cache_dir.iterdir()} == before


def test_settings(call: Call, monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("CLKILN_DEVIC", "0")
    text = " ".join(call("doctor").out.split())
    assert "NO_COLOR=1" in text and f"CLKILN_CACHE_DIR={cache_dir}" in text
    assert "secret" not in text
    assert "CLKILN_DEVIC is none of clkiln's variables -> did you mean CLKILN_DEVICE?" in text


@pytest.mark.parametrize(
    ("name", "value"), [("CLKILN_DEVICE", "teapot"), ("CLKILN_MEMORY_BUDGET", "much")]
)
def test_settings_that_prevent_running(
    call: Call, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    result = call("doctor")
    assert result.code == 1 and f"-> unset {name}" in result.out
    assert f"problem  devices: {name}: " in result.out


def test_graphics_processors_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clkiln.runtime.machine.gpus", lambda: ["AMD", "NVIDIA"])
    found = list(checks.check_gpus(Machine((row(platform="NVIDIA CUDA"),))))
    assert [check.text for check in found] == ["a graphics processor of AMD has no OpenCL driver"]
    found = list(checks.check_gpus(Machine((row(type="cpu", platform="NVIDIA CUDA"),))))
    assert len(found) == 2 and "nvidia-opencl-icd" in found[1].todo


def test_files_that_stay_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    from clkiln.runtime.machine import DeviceNode

    node = DeviceNode(Path("/dev/dri/renderD128"), False, 0)
    monkeypatch.setattr("clkiln.runtime.machine.device_nodes", lambda: [node])
    monkeypatch.setattr("clkiln.runtime.machine.gpus", list)
    [check] = checks.check_gpus(Machine(()))
    assert "you may not use /dev/dri/renderD128 (group root)" in check.text
    assert check.todo.startswith("sudo usermod -aG root $USER")


def test_a_check_that_stumbles_is_a_note(
    call: Call, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(row())

    def check_stars(machine: Machine) -> Any:
        yield Check("stars", "ok", "seen")
        raise RuntimeError("clouds\nagain")

    monkeypatch.setattr(doctor, "CHECKS", (check_stars, checks.check_versions))
    found = doctor.examine()
    assert [check.status for check in found[:2]] == ["ok", "note"]
    assert found[1].text == "could not be looked at: clouds again"
    assert found[2].topic == "versions"


# -- what would be faster --------------------------------------------------------------------------

PIP = {
    "type": "cpu", "platform": "Portable Computing Language", "driver_version": "3.0-rc2",
    "platform_version": "OpenCL 3.0 PoCL 3.0-rc2  Linux, LLVM 14",
}  # fmt: skip
DEBIAN = {**PIP, "driver_version": "3.1+debian", "platform_version": "OpenCL 3.0 PoCL 3.1+debian"}
INTEL = {"type": "cpu", "platform": "Intel(R) OpenCL"}


@pytest.mark.parametrize(
    ("devices", "flags", "newer_pocl"),
    [
        ([PIP], {"avx512f"}, True),
        ([PIP], {"avx2"}, False),
        ([PIP, DEBIAN], {"avx512f"}, False),
        ([INTEL], {"avx512f"}, False),
        ([], {"avx512f"}, False),
    ],
)
def test_drivers_to_try(
    monkeypatch: pytest.MonkeyPatch, devices: list[dict[str, Any]], flags: set[str],
    newer_pocl: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("clkiln.runtime.machine.cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(hints, "_installed", lambda name: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    rows = tuple(row(**device) for device in devices)
    found = said(list(hints.check_drivers_to_try(Machine(rows))), "note")
    assert ("sudo apt install pocl-opencl-icd" in found) == newer_pocl
    intel = bool(devices) and INTEL not in devices and sys.platform == "linux"
    assert ("pip install 'clkiln[intel]'" in found) == intel


def speed(device: dict[str, Any], model: str, rate: object, tuned: bool) -> None:
    with Store.open(Path(device["cache_file"])) as store:
        fact = {"model": model, "decode_tok_s": rate, "tuned": tuned}
        store.set_fact(f"speed:{model}", fact, driver=device["driver_key"])


def test_what_was_tuned_and_measured(cache_dir: Path) -> None:
    one, two = row(index=0, name="Acme 1"), row(index=1, name="Acme 2")
    both = Machine((one, two))

    def notes(machine: Machine) -> str:
        return said(list(hints.check_tuning(machine)), "note")

    assert "2 devices and none measured" in notes(both)
    assert "no model was tuned here" in notes(Machine((one,)))
    assert notes(Machine(())) == ""
    speed(one, "Small", 50.0, True)
    assert notes(Machine((one,))) == ""
    assert "Small was never measured on device 1 -> clkiln tune MODEL --device 1" in notes(both)
    speed(two, "Small", 80.0, False)
    assert "Small runs quickest on device 1, untuned" in notes(both)
    speed(two, "Small", 80.0, True)
    assert notes(both) == ""
    speed(two, "Odd", "fast", True)
    assert notes(both) == "", "a figure that makes no sense is none"
    Path(two["cache_file"]).write_text("Dear diary")
    assert "never measured on device 1" in notes(both)
