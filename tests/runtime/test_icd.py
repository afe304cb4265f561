"""Drivers that the loader does not find by itself become visible, and nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clk_given import as_root, posix
from clkiln import trust
from clkiln.cache.store import Store
from clkiln.runtime import icd

#: A user and a group that own nothing here.
OTHER = 54321
#: What lets others write: modes, the latter of another group, and another owner.
BY_GROUP, BY_OWNER = pytest.param(0o770, marks=as_root), pytest.param(None, marks=as_root)
FILES = st.dictionaries(
    st.text("abc", min_size=1, max_size=4).map("{}.icd".format),
    st.text("xyz/ü ", min_size=1, max_size=8).map(str.strip).filter(bool),
    max_size=4,
)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without any driver, with an empty home: what a test adds is all there is."""
    for name in (*icd.USER_VARIABLES, "LD_LIBRARY_PATH", "PYOPENCL_NO_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLKILN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(icd, "SYSTEM_VENDORS", tmp_path / "vendors")
    monkeypatch.setattr(icd, "NVIDIA_FOLDERS", (str(tmp_path / "nvidia"),))
    monkeypatch.setattr(icd, "PIP_DRIVERS", {"fake-opencl": "libfakecl.so"})
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    (tmp_path / "vendors").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    saved = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(saved)


def install(root: Path) -> Path:
    """What pip leaves of ``fake-opencl``: a library outside site-packages, and a wrong .icd."""
    library = root / "prefix/lib/libfakecl.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"")
    register(root, library)
    vendors = root / "prefix/etc/OpenCL/vendors"
    vendors.mkdir(parents=True)
    (vendors / "fake.icd").write_text("/opt/builder/lib/libfakecl.so\n")
    return library


def register(root: Path, library: Path) -> None:
    """A distribution whose list of files holds ``library``."""
    info = root / "site/fake_opencl-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-opencl\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{os.path.relpath(library, root / 'site')},,\n")


def visible() -> dict[str, str]:
    """The drivers that the loader is pointed at."""
    return icd.listed_drivers([Path(os.environ["OCL_ICD_VENDORS"])])


def test_nothing_to_add_changes_nothing(bare: Path) -> None:
    icd.prepare_drivers()
    assert "OCL_ICD_VENDORS" not in os.environ
    assert not (bare / "cache").exists()


def test_pip_driver_joins_those_of_the_system(
    bare: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library = install(bare)
    (bare / "vendors/pocl.icd").write_text("libpocl.so.2\n")
    icd.prepare_drivers()
    assert visible() == {
        "pocl.icd": "libpocl.so.2",
        "clkiln-fake-opencl.icd": str(library),
    }
    first = os.environ["OCL_ICD_VENDORS"]
    icd.prepare_drivers()
    assert os.environ["OCL_ICD_VENDORS"] == first
    assert capfd.readouterr() == ("", "")


def test_a_driver_the_system_names_is_not_added(bare: Path) -> None:
    install(bare)
    other = bare / "libfakecl.so.2"
    other.write_bytes(b"")
    (bare / "vendors/fake.icd").write_text(str(other))
    icd.prepare_drivers()
    assert "OCL_ICD_VENDORS" not in os.environ


def test_removed_library_is_not_added(bare: Path) -> None:
    install(bare).unlink()
    icd.prepare_drivers()
    assert "OCL_ICD_VENDORS" not in os.environ


@pytest.mark.parametrize("place", ["nvidia", "mounted"])
def test_nvidia_without_an_icd_file(
    place: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = bare / place / icd.NVIDIA_LIBRARY
    library.parent.mkdir()
    library.write_bytes(b"")
    monkeypatch.setenv("LD_LIBRARY_PATH", f":relative:{bare / 'mounted'}")
    icd.prepare_drivers()
    assert visible() == {"clkiln-nvidia.icd": str(library)}


def test_nvidia_with_an_icd_file_is_left_alone(bare: Path) -> None:
    (bare / "nvidia").mkdir()
    (bare / "nvidia" / icd.NVIDIA_LIBRARY).write_bytes(b"")
    (bare / "vendors/nvidia.icd").write_text("libnvidia-opencl.so.1\n")
    icd.prepare_drivers()
    assert "OCL_ICD_VENDORS" not in os.environ


@pytest.mark.parametrize("variable", icd.USER_VARIABLES)
def test_the_users_choice_stands(
    variable: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(bare)
    monkeypatch.setenv(variable, "/mine")
    before = dict(os.environ)
    icd.prepare_drivers()
    assert dict(os.environ) == {**before, "PYOPENCL_NO_CACHE": "1"}


def test_pyopencls_cache_is_off_unless_asked_for(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    icd.prepare_drivers()
    assert os.environ["PYOPENCL_NO_CACHE"] == "1"
    monkeypatch.setenv("PYOPENCL_NO_CACHE", "0")
    icd.prepare_drivers()
    assert os.environ["PYOPENCL_NO_CACHE"] == "0"


def test_unwritable_cache_folder_falls_back(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = install(bare)
    (bare / "file").write_bytes(b"")
    monkeypatch.setenv("CLKILN_CACHE_DIR", str(bare / "file"))
    icd.prepare_drivers()
    assert visible() == {"clkiln-fake-opencl.icd": str(library)}
    shutil.rmtree(Path(os.environ["OCL_ICD_VENDORS"]).parent)


def test_what_is_made_is_for_the_user_alone(bare: Path) -> None:
    """In a folder that everybody can write clkiln would refuse its own cache file."""
    install(bare)
    before = os.umask(0)
    try:
        icd.prepare_drivers()
    finally:
        os.umask(before)
    folder = Path(os.environ["OCL_ICD_VENDORS"])
    assert folder.parent == bare / "cache/drivers"
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (bare / "cache").rglob("*")}
    assert modes.pop(folder.name) == 0o755
    assert modes == {"drivers": 0o700, "clkiln-fake-opencl.icd": 0o644}
    Store.open(bare / "cache/x.sqlite").close()


@posix
@pytest.mark.parametrize("step", ["cache", "cache/drivers"])
@pytest.mark.parametrize("mode", [0o777, 0o1777, BY_GROUP, BY_OWNER])
def test_a_folder_that_others_could_change_is_not_used(
    bare: Path, step: str, mode: int | None
) -> None:
    """The loader would open their library."""
    library = install(bare)
    assert _used(bare)
    _spoil(bare / step, mode)
    if (step, mode) == ("cache", 0o1777):
        assert _used(bare), "as in /tmp nobody else can replace a folder of this user"
        return
    assert not _used(bare)
    assert visible() == {"clkiln-fake-opencl.icd": str(library)}
    shutil.rmtree(Path(os.environ["OCL_ICD_VENDORS"]).parent)


@posix
@pytest.mark.parametrize("step", ["*", "*/*.icd"])
@pytest.mark.parametrize("mode", [0o777, BY_GROUP, BY_OWNER])
def test_a_list_that_others_could_have_written_is_made_again(
    bare: Path, step: str, mode: int | None
) -> None:
    library = install(bare)
    assert _used(bare)
    [spoilt] = (bare / "cache/drivers").glob(step)
    _spoil(spoilt, mode)
    assert _used(bare) and visible() == {"clkiln-fake-opencl.icd": str(library)}
    [file] = (bare / "cache/drivers").glob("*/*")
    trust.check(file)


def _spoil(path: Path, mode: int | None) -> None:
    """Let others write ``path``; None makes it theirs."""
    if mode in (None, 0o770):
        os.chown(path, OTHER if mode is None else -1, OTHER)
    if mode is not None:
        path.chmod(mode)


def _used(bare: Path) -> bool:
    """Whether a start points the loader at the folder that is kept."""
    os.environ.pop("OCL_ICD_VENDORS", None)
    icd.prepare_drivers()
    return Path(os.environ["OCL_ICD_VENDORS"]).is_relative_to(bare / "cache")


def test_temporary_folder_goes_with_the_process(tmp_path: Path) -> None:
    code = "from clkiln.runtime import icd; print(icd._temporary_folder(), flush=True)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    folder = Path(result.stdout.strip())
    assert folder.parent == tmp_path
    assert not folder.exists()


def test_unreadable_and_dead_icd_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "dead.icd").write_text("/nowhere/libx.so")
    (tmp_path / "empty.icd").write_text("\n")
    (tmp_path / "binary.icd").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.icd").mkdir()
    (tmp_path / "note.txt").write_text("libx.so")
    (tmp_path / "good.icd").write_text("libx.so\n")
    assert icd.listed_drivers([tmp_path / "missing", tmp_path]) == {"good.icd": "libx.so"}


@given(first=FILES, second=FILES)
def test_folders_are_named_by_what_they_hold(
    first: dict[str, str], second: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    parent = tmp_path_factory.mktemp("drivers")
    folders = [icd.write_vendors(files, parent) for files in (first, second, first)]
    assert folders[0] == folders[2]
    assert (folders[0] == folders[1]) == (first == second)
    held = {f.name: f.read_text().rstrip("\n") for f in folders[1].iterdir()}
    assert held == second
    assert {p.name for p in parent.iterdir()} == {f.name for f in folders}


def test_a_folder_that_someone_changed_is_made_again(tmp_path: Path) -> None:
    drivers = {"a.icd": "liba.so", "b.icd": "libb.so"}
    folder = icd.write_vendors(drivers, tmp_path)
    for damage in ("a.icd", "b.icd", "c.icd"):
        (folder / damage).write_text("libevil.so\n")
        assert icd.write_vendors(drivers, tmp_path) == folder
        assert icd.listed_drivers([folder]) == drivers


def test_processes_that_start_together_share_a_folder(tmp_path: Path) -> None:
    drivers = {f"{i}.icd": f"lib{i}.so" for i in range(20)}
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(icd.write_vendors, drivers, tmp_path) for _ in range(32)]
    assert len({m.result() for m in made}) == 1
    assert icd.listed_drivers([made[0].result()]) == drivers
    assert len(list(tmp_path.iterdir())) == 1


def test_the_loader_takes_an_added_driver(bare: Path) -> None:
    """End to end: a real driver that only a distribution's file list leads to is listed."""
    # PoCL loads its device libraries from beside itself: the library must stay where it is.
    library = next(iter(sorted(Path("/usr/lib").glob("*/libpocl.so.2.*"))), None)
    if library is None:
        pytest.skip("needs Debian's pocl-opencl-icd")
    register(bare, library)
    code = (
        "import json; from pathlib import Path\n"
        "from clkiln.runtime import icd\n"
        f"icd.SYSTEM_VENDORS = Path({str(bare / 'vendors')!r})\n"
        f"icd.PIP_DRIVERS = {{'fake-opencl': {library.name!r}}}\n"
        "from clkiln.runtime.device import list_devices\n"
        "print(json.dumps([d.info.as_dict() for d in list_devices()]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(bare / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    versions = [d["platform_version"] for d in json.loads(result.stdout)]
    assert sum("debian" in v for v in versions) == 1, result.stderr
