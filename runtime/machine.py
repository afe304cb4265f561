"""What the system says of drivers and graphics processors, read from files; no driver is loaded.

Functions take the ``root`` below which those files lie, so that other machines can be looked at.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .icd import SYSTEM_VENDORS, linker_finds

#: PCI vendors that make graphics processors, and a word of their OpenCL platforms' vendor names.
PCI_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_DISPLAY_CLASS = "0x03"


@dataclass(frozen=True)
class DriverFile:
    """An ``.icd`` file and the driver library that it names; ``problem`` says what is wrong."""

    path: Path
    library: str
    problem: str = ""


@dataclass(frozen=True)
class DeviceNode:
    """A file in ``/dev`` that a driver opens. ``group`` owns it, by number."""

    path: Path
    usable: bool
    group: int


def vendor_folders(
    environment: Mapping[str, str], prefix: str, root: Path = Path("/")
) -> list[Path]:
    """Where the loader looks for ``.icd`` files: what the user chose, or the usual places."""
    for name in ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"):
        if environment.get(name):
            return [Path(environment[name])]
    return [root / SYSTEM_VENDORS.relative_to("/"), Path(prefix) / "etc/OpenCL/vendors"]


def driver_files(folder: Path) -> list[DriverFile]:
    """The ``.icd`` files of a folder (or the one file that ``folder`` is), broken ones included."""
    files = [folder] if folder.is_file() else sorted(folder.glob("*.icd"))
    return [_driver_file(file) for file in files]


def _driver_file(file: Path) -> DriverFile:
    try:
        library = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        return DriverFile(file, "", f"cannot be read: {getattr(error, 'strerror', None) or error}")
    if not library:
        return DriverFile(file, "", "names no library")
    if library.startswith("/"):
        there = Path(library).exists()
    else:
        there = linker_finds(library) is not False
    return DriverFile(file, library, "" if there else f"names {library}, which is not there")


def gpus(root: Path = Path("/")) -> list[str]:
    """The makers of the graphics processors on the PCI bus, of those that OpenCL drivers are for.

    A virtual machine's display adapter is none. NVIDIA's node in ``/dev`` counts, too: containers
    often see it and no bus.
    """
    found = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if _read(device / "class").startswith(_DISPLAY_CLASS):
            found.append(PCI_VENDORS.get(_read(device / "vendor"), ""))
    if (root / "dev/nvidiactl").exists() or (root / "proc/driver/nvidia/version").exists():
        found.append("NVIDIA")
    return sorted({maker for maker in found if maker})


def device_nodes(root: Path = Path("/")) -> list[DeviceNode]:
    """The files through which drivers reach graphics processors."""
    patterns = ("dri/renderD*", "kfd", "nvidiactl", "nvidia[0-9]*")
    nodes = []
    for pattern in patterns:
        for path in sorted((root / "dev").glob(pattern)):
            try:
                status = os.stat(path)
            except OSError:
                continue
            if stat.S_ISCHR(status.st_mode) or root != Path("/"):
                nodes.append(DeviceNode(path, os.access(path, os.R_OK | os.W_OK), status.st_gid))
    return nodes


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """What the first processor can do, in Linux's words (``avx512f``); empty where nobody says."""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
