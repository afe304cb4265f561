"""What the system says of drivers and graphics processors, on machines made of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clkiln.runtime.icd import linker_cache, linker_finds
from clkiln.runtime.machine import cpu_flags, device_nodes, driver_files, gpus, vendor_folders


def write(root: Path, path: str, text: str = "") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_icd_files_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    library = write(tmp_path, "libacme.so.1")
    folder = tmp_path / "vendors"
    write(folder, "a.icd", f"{library}\n")
    write(folder, "b.icd", f"{tmp_path}/gone.so\n")
    write(folder, "c.icd", " \n")
    (folder / "d.icd").write_bytes(b"\xff\xfe")
    write(folder, "e.icd", "libnobody-has-this.so.7")
    (folder / "f.icd").mkdir()
    write(folder, "readme.txt", "no driver")
    found = {file.path.name: file for file in driver_files(folder)}
    assert list(found) == ["a.icd", "b.icd", "c.icd", "d.icd", "e.icd", "f.icd"]
    assert found["a.icd"].problem == "" and found["a.icd"].library == str(library)
    assert found["b.icd"].problem == f"names {tmp_path}/gone.so, which is not there"
    assert found["c.icd"].problem == "names no library"
    assert "cannot be read" in found["d.icd"].problem
    assert "cannot be read" in found["f.icd"].problem
    if linker_cache() is not None:
        assert "is not there" in found["e.icd"].problem
    [single] = driver_files(folder / "a.icd")
    assert single.problem == ""
    assert driver_files(tmp_path / "nowhere") == []


def test_the_linker_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = linker_cache()
    if not known:
        pytest.skip("no ldconfig here")
    name, path = next(iter(known.items()))
    assert linker_finds(name) is True and linker_finds(path.name) is True
    assert linker_finds("libnobody-has-this.so.7") is False
    write(tmp_path, "libnobody-has-this.so.7")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"relative::{tmp_path}")
    assert linker_finds("libnobody-has-this.so.7") is True


def test_where_the_loader_looks(tmp_path: Path) -> None:
    usual = [tmp_path / "etc/OpenCL/vendors", Path("/venv/etc/OpenCL/vendors")]
    assert vendor_folders({}, "/venv", tmp_path) == usual
    assert vendor_folders({"OCL_ICD_VENDORS": ""}, "/venv", tmp_path) == usual
    assert vendor_folders({"OCL_ICD_VENDORS": "/a"}, "/venv", tmp_path) == [Path("/a")]
    assert vendor_folders({"OPENCL_VENDOR_PATH": "/b"}, "/venv", tmp_path) == [Path("/b")]


@pytest.mark.parametrize(
    ("devices", "makers"),
    [
        ([], []),
        ([("0x030000", "0x10de"), ("0x030200", "0x10de")], ["NVIDIA"]),
        ([("0x030000", "0x8086"), ("0x038000", "0x1002")], ["AMD", "Intel"]),
        # A network card of Intel, the display of a virtual machine, a board's own console.
        ([("0x020000", "0x8086"), ("0x030000", "0x1234"), ("0x030000", "0x1a03")], []),
    ],
)
def test_graphics_processors(
    tmp_path: Path, devices: list[tuple[str, str]], makers: list[str]
) -> None:
    for number, (kind, vendor) in enumerate(devices):
        write(tmp_path, f"sys/bus/pci/devices/0000:00:0{number}.0/class", f"{kind}\n")
        write(tmp_path, f"sys/bus/pci/devices/0000:00:0{number}.0/vendor", f"{vendor}\n")
    assert gpus(tmp_path) == makers
    write(tmp_path, "dev/nvidiactl")
    assert gpus(tmp_path) == sorted({*makers, "NVIDIA"})


def test_device_nodes(tmp_path: Path) -> None:
    assert device_nodes(tmp_path) == []
    nodes = [write(tmp_path, f"dev/{name}") for name in ("dri/renderD128", "nvidiactl", "nvidia0")]
    write(tmp_path, "dev/dri/card0")
    nodes[0].chmod(0)
    found = device_nodes(tmp_path)
    assert [node.path for node in found] == nodes
    assert [node.usable for node in found] == [os.geteuid() == 0, True, True]
    assert {node.group for node in found} == {os.getegid()}


def test_processor_flags(tmp_path: Path) -> None:
    assert cpu_flags(tmp_path) == frozenset()
    write(tmp_path, "proc/cpuinfo", "processor : 0\nflags\t\t: fpu avx2 avx512f\n\nflags : x\n")
    assert cpu_flags(tmp_path) == {"fpu", "avx2", "avx512f"}
    write(tmp_path, "proc/cpuinfo", "processor : 0\nFeatures : fp asimd\n")
    assert cpu_flags(tmp_path) == {"fp", "asimd"}
