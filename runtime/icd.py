"""Makes OpenCL drivers visible that the loader does not find by itself.

The loader reads one folder of ``.icd`` files, each naming a driver library, and takes that folder
from ``OCL_ICD_VENDORS`` when it is set. Three kinds of drivers are missing from the default
folder: those that pip put into the environment (``intel-opencl-rt`` ships an ``.icd`` with the path
of the machine it was built on), NVIDIA's in containers that mount the driver without its ``.icd``,
and none of them should cost the user a variable to set. PoCL inside pyopencl's wheel needs no help:
the loader in that wheel finds it under any setting.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from .. import trust
from ..errors import CacheError

logger = logging.getLogger(__name__)

#: A user who set one of these has chosen the drivers; nothing is added to that choice.
#: ``OCL_ICD_FILENAMES`` is none of them: another loader's variable for drivers besides the listed
#: ones, which containers set and pyopencl's loader does not read.
USER_VARIABLES = ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH")

SYSTEM_VENDORS = Path("/etc/OpenCL/vendors")

#: Distributions that bring a driver, and the file name of its library.
PIP_DRIVERS = {"intel-opencl-rt": "libintelocl.so"}

NVIDIA_LIBRARY = "libnvidia-opencl.so.1"

#: Where container runtimes, WSL, NixOS and the usual distributions put NVIDIA's driver.
NVIDIA_FOLDERS = (
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu",
    "/run/opengl-driver/lib",
)


def prepare_drivers() -> None:
    """Let the loader see every installed driver; to be called before pyopencl is first imported.

    Sets ``OCL_ICD_VENDORS`` for this process (and those it starts) when a driver is missing from
    the system's list and the user chose none, and ``PYOPENCL_NO_CACHE``, because pyopencl's own
    program cache would hide what a compile costs. Changes nothing the user has set, raises
    nothing, and a second call does nothing.
    """
    os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
    if not sys.platform.startswith("linux") or any(os.environ.get(v) for v in USER_VARIABLES):
        return
    listed = listed_drivers((SYSTEM_VENDORS, Path(sys.prefix) / "etc/OpenCL/vendors"))
    added = missing_drivers(listed)
    if not added:
        return
    try:
        folder = _own_vendors({**listed, **added})
    except (OSError, CacheError) as error:
        logger.debug("the cache folder takes no .icd files (%s): a temporary one", error)
        try:
            folder = write_vendors({**listed, **added}, _temporary_folder())
        except OSError as second:
            logger.warning("drivers %s stay invisible: %s", ", ".join(added.values()), second)
            return
    os.environ["OCL_ICD_VENDORS"] = str(folder)


def listed_drivers(folders: Iterable[Path]) -> dict[str, str]:
    """The ``.icd`` files of ``folders`` as file name -> driver library.

    A file whose library is an absolute path to nothing is left out: it cannot load, and it must
    not keep the same driver from being added with its right path. Where two folders hold a file
    of one name the first counts.
    """
    drivers: dict[str, str] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.icd")):
            try:
                library = file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                logger.debug("cannot read %s: %s", file, error)
                continue
            if library and (not library.startswith("/") or Path(library).exists()):
                drivers.setdefault(file.name, library)
    return drivers


def missing_drivers(listed: Mapping[str, str]) -> dict[str, str]:
    """Installed drivers that ``listed`` lacks, as ``.icd`` file name -> path of the library.

    A library that is listed under any path is not added again: two copies of one driver in one
    process would share the libraries they load by name.
    """
    known = {_stem(library) for library in listed.values()}
    found = {name: _pip_library(name, library) for name, library in PIP_DRIVERS.items()}
    if _stem(NVIDIA_LIBRARY) not in known:
        found["nvidia"] = _nvidia_library()
    return {
        f"clkiln-{name}.icd": str(path)
        for name, path in found.items()
        if path is not None and _stem(path.name) not in known
    }


def _stem(library: str) -> str:
    """``/a/b/libx.so.1.2`` -> ``libx``."""
    return library.rpartition("/")[2].partition(".so")[0]


def _pip_library(distribution: str, library: str) -> Path | None:
    """The path of ``library`` in an installed distribution, from its own list of files."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == library:
            path = Path(os.path.normpath(file.locate()))
            return path if path.is_file() else None
    return None


def _nvidia_library() -> Path | None:
    """The path of NVIDIA's OpenCL driver, from the common folders or the linker's cache."""
    search = [f for f in os.environ.get("LD_LIBRARY_PATH", "").split(":") if f.startswith("/")]
    for folder in (*search, *NVIDIA_FOLDERS):
        path = Path(folder, NVIDIA_LIBRARY)
        if path.is_file():
            return path
    # Asking the linker takes a process: only where there is such a device to drive.
    if not Path("/dev/nvidiactl").exists():
        return None
    return (linker_cache() or {}).get(NVIDIA_LIBRARY)


def linker_cache() -> dict[str, Path] | None:
    """The libraries that the linker knows, by name; None where it can't be asked."""
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin:/usr/bin")
    if ldconfig is None:
        return None
    try:
        answer = subprocess.run(
            [ldconfig, "-p"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.debug("%s -p: %s", ldconfig, error)
        return None
    found: dict[str, Path] = {}
    for line in answer.stdout.splitlines():
        name, _, target = line.partition("=>")
        path = Path(target.strip())
        if name.split() and path.is_file():
            found.setdefault(name.split()[0], path)
    return found


def linker_finds(library: str) -> bool | None:
    """Whether a library without a path would be found; None where nobody can say."""
    search = [f for f in os.environ.get("LD_LIBRARY_PATH", "").split(":") if f.startswith("/")]
    if any(Path(folder, library).is_file() for folder in search):
        return True
    known = linker_cache()
    if known is None:
        return None
    # The cache has a library's own name; a file of any name in its folders is found as well.
    folders = {path.parent for path in known.values()}
    return library in known or any((folder / library).is_file() for folder in folders)


def driver_folder() -> Path:
    """Where folders of ``.icd`` files are kept: with the cache files where those were moved."""
    moved = os.environ.get("CLKILN_CACHE_DIR")
    if moved:
        folder = Path(os.path.expanduser(moved), "drivers").absolute()
    else:
        import platformdirs  # here: most machines have nothing to add

        folder = platformdirs.user_cache_path("clkiln", appauthor=False) / "drivers"
    if "~" in folder.parts:
        raise OSError("there is no home folder")
    return folder


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="clkiln-drivers-"))
    owner = os.getpid()

    def remove() -> None:
        # A forked child inherits this handler, but not the right to take the folder away.
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _own_vendors(drivers: Mapping[str, str]) -> Path:
    """As :func:`write_vendors`, where they are kept for the next start.

    Raises ``OSError``, or :class:`CacheError` where others could change the folder: the loader
    opens whatever library is named there.
    """
    parent = driver_folder()
    trust.check(parent)
    folder = write_vendors(drivers, parent)
    trust.check(folder)  # somebody else may have made its parent meanwhile
    return folder


def write_vendors(drivers: Mapping[str, str], parent: Path) -> Path:
    """A folder under ``parent`` that holds exactly these ``.icd`` files; raises ``OSError``.

    Its name is a digest of what is in it, it appears by one rename and is never changed after:
    processes that start together end up with the same folder, whole at any time.
    """
    text = "".join(f"{name}\0{library}\0" for name, library in sorted(drivers.items()))
    folder = parent / hashlib.sha256(text.encode()).hexdigest()[:16]
    if _holds(folder, drivers):
        return folder
    trust.make_folders(parent)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    try:
        for name, library in drivers.items():
            (scratch / name).write_text(f"{library}\n", encoding="utf-8")
            (scratch / name).chmod(0o644)  # whatever the umask
        scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            # There by now: made by a process that was quicker, or changed by someone.
            if not _holds(folder, drivers):
                shutil.rmtree(folder, ignore_errors=True)
                scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _holds(folder: Path, drivers: Mapping[str, str]) -> bool:
    """Whether ``folder`` is there and holds these ``.icd`` files and no other, which nobody else
    could have written."""
    if not folder.is_dir():
        return False
    try:
        files = list(folder.glob("*.icd"))
        for file in files:
            trust.check(file)
        present = {f.name: f.read_text(encoding="utf-8") for f in files}
    except (OSError, UnicodeDecodeError, CacheError):
        return False
    return present == {name: f"{library}\n" for name, library in drivers.items()}
