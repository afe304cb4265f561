"""The checks of ``clkiln doctor``: each looks at one thing and says what it saw."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..errors import ClkilnError

Status = Literal["ok", "note", "problem"]

#: Variables that clkiln reads.
VARIABLES = (
    "CLKILN_DEVICE", "CLKILN_CACHE_DIR", "CLKILN_LIMITS", "CLKILN_MODELS_DIR",
    "CLKILN_MEMORY_BUDGET", "CLKILN_SYSTEM_CACHE_DIR", "CLKILN_CACHE_LIMIT",
)  # fmt: skip
#: Beginnings of the names of others that change what happens here.
OTHERS = ("OCL_ICD_", "OPENCL_", "POCL_", "CUDA_CACHE_", "HF_ENDPOINT", "NO_COLOR")
#: Bytes that a cache folder should have free: a tuned model takes a few MiB.
LITTLE = 100 << 20
#: A driver that hangs while it is loaded must not hang this.
PATIENCE = 60.0
#: Lists the devices in a process of its own: a broken driver may end the process that loads it.
LIST_DEVICES = (sys.executable, "-m", "clkiln", "devices", "--json")

_GPU_DRIVERS = {
    "NVIDIA": "sudo apt install nvidia-opencl-icd (Debian, with NVIDIA's driver)",
    "AMD": "sudo apt install mesa-opencl-icd, or install ROCm's OpenCL runtime",
    "Intel": "sudo apt install intel-opencl-icd",
}


@dataclass(frozen=True)
class Check:
    """What a check saw. A ``problem`` prevents running; ``todo`` is a command or an advice."""

    topic: str
    status: Status
    text: str
    todo: str = ""


@dataclass(frozen=True)
class Machine:
    """What several checks look at. ``devices`` are the rows of ``clkiln devices --json``;
    ``failure`` says why they could not be listed."""

    devices: tuple[Mapping[str, Any], ...]
    failure: str = ""


def look() -> Machine:
    """The devices, listed by another process, each of which compiled a small kernel.

    ``failure`` says why that was not possible; where only compiling failed they are still listed.
    """
    tried = _devices("compiling a small kernel on each device", "--try")
    if not tried.failure:
        return tried
    listed = _devices("listing the devices")
    return listed if listed.failure else Machine(listed.devices, tried.failure)


def _devices(doing: str, *options: str) -> Machine:
    # From here `python -m clkiln` may not be found: where the package lies comes first.
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    # The machine itself is looked at, not what it may be told to pretend.
    environment = {**os.environ, "PYTHONPATH": path, "CLKILN_LIMITS": ""}
    try:
        done = subprocess.run(
            (*LIST_DEVICES, *options), capture_output=True, text=True, errors="replace",
            timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Machine((), f"{doing} did not end within {PATIENCE:.0f} s")
    if done.returncode < 0:
        return Machine((), f"{doing}: a driver ended the process (signal {-done.returncode})")
    # With 1 it also says that no device works, which the rows say better.
    if done.returncode and not done.stdout.startswith("["):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return Machine((), f"{doing} failed: {lines[-1] if lines else 'no reason'}")
    return Machine(tuple(json.loads(done.stdout)))


def line_of(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# -- versions --------------------------------------------------------------------------------------


def check_versions(machine: Machine) -> Iterator[Check]:
    names = ("pyopencl", "numpy", "optuna", "tokenizers", "huggingface_hub")
    versions = {name: _version(name) for name in names}
    there = [f"{name} {version}" for name, version in versions.items() if version]
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    text = ", ".join([f"clkiln {__version__}", python, *there, f"SQLite {sqlite3.sqlite_version}"])
    yield Check("versions", "ok", text)
    for name in ("pyopencl", "numpy"):
        if not versions[name]:
            todo = f"{sys.executable} -m pip install {name}"
            yield Check("versions", "problem", f"{name} is not installed", todo)
    from ..cache.schema import OLDEST_SQLITE

    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        yield Check("versions", "note", "this SQLite is too old for a cache file: nothing is kept",
                    "use a Python that brings SQLite 3.37 or newer")  # fmt: skip


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


# -- drivers and devices ---------------------------------------------------------------------------


def check_drivers(machine: Machine) -> Iterator[Check]:
    from ..runtime.icd import missing_drivers
    from ..runtime.machine import driver_files, vendor_folders

    folders = vendor_folders(os.environ, sys.prefix)
    files = [file for folder in folders for file in driver_files(folder)]
    sound = {file.path.name: file.library for file in files if not file.problem}
    names = [f"{name} ({Path(library).name})" for name, library in sound.items()]
    chosen = any(os.environ.get(name) for name in ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"))
    added = {} if chosen else missing_drivers(sound)
    names += [f"{Path(library).name} (found by clkiln)" for library in added.values()]
    if _version("pocl-binary-distribution"):
        names.append("PoCL in pyopencl's wheel")
    yield Check("drivers", "ok" if names else "note", ", ".join(names) or "no .icd file found")
    if chosen and not folders[0].exists():
        yield Check("drivers", "note", f"OCL_ICD_VENDORS names {folders[0]}, which is not there",
                    "unset OCL_ICD_VENDORS")  # fmt: skip
    libraries = {Path(library).name for library in added.values()}
    for file in files:
        # One that pip installed with a wrong path is found by its right one.
        if file.problem and Path(file.library).name not in libraries:
            yield Check("drivers", "note", f"{file.path} {file.problem}: it is left out",
                        "install its driver again, or delete the file")  # fmt: skip


def check_devices(machine: Machine) -> Iterator[Check]:
    from ..runtime.faults import OTHER_DRIVER

    if machine.failure:
        todo = "find the driver: name one folder after the other in OCL_ICD_VENDORS"
        yield Check("devices", "problem", machine.failure, todo)
    elif not machine.devices:
        yield Check("devices", "problem", "there is no OpenCL device",
                    "pip install 'clkiln[pocl]' brings a driver for the CPU")  # fmt: skip
    useless = all(row["fault"] for row in machine.devices)
    for row in machine.devices:
        version = str(row["platform_version"]).split(",")[0]
        text = f"{row['index']}: {row['name']}, {row['platform']} {' '.join(version.split()[:4])}"
        text = f"{text}, driver {row['driver_version']}"
        if row["fault"]:
            # Where another device works models run, and the default is that one.
            status: Status = "problem" if useless else "note"
            yield Check(
                "devices",
                status,
                f"{text}: not even a small kernel works: {row['fault']}",
                OTHER_DRIVER,
            )
        else:
            yield Check("devices", "ok", text)
    yield from _selected(machine)


def _selected(machine: Machine) -> Iterator[Check]:
    from ..runtime.device import memory_budget, select_device, selector_from_environment

    selector = selector_from_environment()
    if not machine.devices or not (selector or os.environ.get("CLKILN_MEMORY_BUDGET")):
        return
    try:
        # Listing them worked in another process, so it may be done in this one.
        info = select_device(selector).info
        memory_budget(info)
        fault = next((row["fault"] for row in machine.devices if row["index"] == info.index), "")
        if selector and fault:
            yield Check("devices", "problem", f"CLKILN_DEVICE: no kernel works on {info.name}",
                        "unset CLKILN_DEVICE")  # fmt: skip
    except ClkilnError as error:
        name = "CLKILN_MEMORY_BUDGET" if "BUDGET" in str(error) else "CLKILN_DEVICE"
        yield Check("devices", "problem", f"{name}: {error}", f"unset {name}")


def check_gpus(machine: Machine) -> Iterator[Check]:
    """Graphics processors that the system sees and OpenCL does not, and files that stay shut."""
    from ..runtime.machine import device_nodes, gpus

    driven = " ".join(f"{row['platform']} {row.get('vendor', '')}" for row in machine.devices
                      if row["type"] == "gpu").lower()  # fmt: skip
    words = {"NVIDIA": ("nvidia",), "AMD": ("amd", "advanced micro"), "Intel": ("intel",)}
    for maker in gpus():
        if not any(word in driven for word in words[maker]):
            yield Check("gpu", "note", f"a graphics processor of {maker} has no OpenCL driver",
                        _GPU_DRIVERS[maker])  # fmt: skip
    shut = [node for node in device_nodes() if not node.usable]
    for node in shut:
        group = _group(node.group)
        yield Check("permissions", "note", f"you may not use {node.path} (group {group})",
                    f"sudo usermod -aG {group} $USER, then log in again")  # fmt: skip


def _group(number: int) -> str:
    try:
        import grp

        return grp.getgrgid(number).gr_name
    except (ImportError, KeyError):
        return str(number)


# -- folders and files -----------------------------------------------------------------------------


def check_folders(machine: Machine) -> Iterator[Check]:
    from ..cache.paths import cache_folder
    from ..inference.catalog import models_dir

    for topic, folder, name, lost in (
        ("cache", cache_folder(), "CLKILN_CACHE_DIR", "nothing that is tuned or compiled is kept"),
        ("models", models_dir(), "CLKILN_MODELS_DIR", "no model can be fetched"),
    ):
        problem = _unwritable(folder)
        if problem:
            yield Check(topic, "note", f"{folder} {problem}: {lost}",
                        f"make it writable, or name another folder in {name}")  # fmt: skip
        elif topic == "cache" and (refused := _refused(folder)):
            yield Check(topic, "note", f"{lost}: a file in {folder} {refused}",
                        f"name another folder in {name}")  # fmt: skip
        else:
            yield from _writable(topic, folder, name)


def _unwritable(folder: Path) -> str:
    """Why files cannot be put into ``folder``, which need not exist; empty if they can."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"cannot be made, as {there} is no folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return "cannot be written"
    return ""


def _refused(folder: Path) -> str:
    """Why clkiln would use no cache file in ``folder``, and what to do; empty if it would."""
    from .. import trust

    try:
        trust.check(folder / "any.sqlite")
    except (ClkilnError, OSError) as error:
        return line_of(error)
    return ""


def _writable(topic: str, folder: Path, name: str) -> Iterator[Check]:
    from ..units import readable

    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{folder}, {readable(free)} free" + ("" if folder.exists() else " (not made yet)")
    if free < LITTLE:
        yield Check(topic, "note", text, f"make room, or name another folder in {name}")
    else:
        yield Check(topic, "ok", text)


def check_cache_files(machine: Machine) -> Iterator[Check]:
    from ..cache.paths import cache_folder
    from ..cache.store import Store
    from ..units import readable

    for path in sorted(cache_folder().glob("*.sqlite")):
        warnings: list[str] = []
        try:
            with Store.open(path, write=False, warn=warnings.append) as store:
                info = store.info()
        except ClkilnError as error:
            yield Check("cache file", "note", line_of(error), f"clkiln cache verify --cache {path}")
            continue
        counts = info["rows"]
        text = f"{path.name}: {readable(info['size'])}, {counts['best']} kernels tuned, "
        text += f"{counts['binaries']} programs"
        if warnings:
            yield Check("cache file", "note", warnings[0], f"clkiln cache verify --cache {path}")
        else:
            yield Check("cache file", "ok", text)


def check_limits(machine: Machine) -> Iterator[Check]:
    from ..runtime.pretend import asked_limits

    try:
        limits = asked_limits()
    except ClkilnError as error:
        yield Check("limits", "problem", line_of(error), "unset CLKILN_LIMITS")
        return
    if limits:
        said = ", ".join(map(str, limits.entries))
        yield Check("limits", "note", f"every device pretends to be smaller: {said}",
                    "unset CLKILN_LIMITS")  # fmt: skip


def check_environment(machine: Machine) -> Iterator[Check]:
    chosen = {k: v for k, v in sorted(os.environ.items()) if k in VARIABLES or k.startswith(OTHERS)}
    if chosen:
        yield Check("settings", "ok", ", ".join(f"{k}={v}" for k, v in chosen.items()))
    for name in sorted(os.environ):
        if name.startswith("CLKILN_") and name not in VARIABLES:
            close = get_close_matches(name, VARIABLES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(VARIABLES)}"
            yield Check("settings", "note", f"{name} is none of clkiln's variables", hint)
