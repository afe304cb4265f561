"""The wheel holds every room with its data, the contracts name every room, any folder will do."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("api", "cache", "cli", "harness", "inference", "kernels", "reports", "runtime", "tuner")
OUTSIDE = {"tests", "docs", "benchmarks", "build", "dist"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def source_files(*suffixes: str) -> set[str]:
    """The package's files with one of ``suffixes`` (or any), relative to the root."""
    files = [p for p in ROOT.iterdir() if p.suffix == ".py" or p.name == "py.typed"]
    for room in ROOMS:
        files += [p for p in (ROOT / room).rglob("*") if p.is_file()]
    return {
        p.relative_to(ROOT).as_posix()
        for p in files
        if "__pycache__" not in p.parts and (not suffixes or p.suffix in suffixes)
    }


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree in a folder whose name is no Python name, without what was built in it."""
    target = tmp_path_factory.mktemp("checkout") / "a.b-c"
    shutil.copytree(
        ROOT,
        target,
        ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__"),
    )
    return target


@pytest.fixture(scope="module")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    version = importlib.metadata.version("setuptools")
    if int(version.partition(".")[0]) < 77:
        pytest.skip(f"needs setuptools 77 (the dev extra brings it), this is {version}")
    folder = tmp_path_factory.mktemp("wheel")
    # Building leaves a build folder behind: from a copy, it is not left in the tree.
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    run(sys.executable, "-c", code, folder, cwd=copy)
    (file,) = folder.glob("clkiln-*.whl")
    return zipfile.ZipFile(file)


def test_every_package_is_listed(project: dict[str, Any]) -> None:
    rooms = [p for p in ROOT.iterdir() if p.name not in OUTSIDE and not p.name.startswith(".")]
    folders = [init.parent for room in rooms for init in room.rglob("__init__.py")]
    names = {".".join(("clkiln", *folder.relative_to(ROOT).parts)) for folder in folders}
    listed = project["tool"]["setuptools"]["packages"]
    assert listed == sorted({"clkiln", *names})


def test_no_python_file_lies_outside_a_package() -> None:
    stray = [f for f in source_files(".py") if not (ROOT / f).with_name("__init__.py").exists()]
    assert stray == []


def test_tests_are_no_packages() -> None:
    # A tests package would be imported as a part of the checkout folder's package.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_room_is_in_every_contract(project: dict[str, Any]) -> None:
    config = project["tool"]
    layers, only_runtime = config["importlinter"]["contracts"]
    layered = {room.strip() for layer in layers["layers"] for room in layer.split("|")}
    assert layered == {*ROOMS, "errors", "trust", "units", "__main__"}
    others = {*ROOMS} - {"runtime"}
    assert {*only_runtime["source_modules"]} == {f"clkiln.{room}" for room in others}
    banned = config["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert banned.keys() == {*ROOMS, "errors", "trust", "units"}


def test_extras(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    assert extras.keys() == {"pocl", "intel", "hub", "report", "dev", "all"}
    (everything,) = extras["all"]
    assert all(name in everything for name in extras.keys() - {"dev", "all"})


def test_version_is_stated_once(project: dict[str, Any]) -> None:
    import clkiln

    assert project["project"]["version"] == clkiln.__version__


def test_wheel_holds_every_file(wheel: zipfile.ZipFile) -> None:
    held = {n.removeprefix("clkiln/") for n in wheel.namelist() if n.startswith("clkiln/")}
    assert held == source_files()
    assert any(name.endswith(".cl") for name in held)
    assert any(name.endswith(".clh") for name in held)
    assert "py.typed" in held


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"clkiln", next(t for t in tops if t.endswith(".dist-info"))}


def test_wheel_works_away_from_the_tree(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import importlib, pkgutil, clkiln\n"
        "names = [m.name for m in pkgutil.walk_packages(clkiln.__path__, 'clkiln.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(clkiln.__file__, len(names))\n"
    )
    output = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    place, count = output.split()
    assert Path(place).is_relative_to(tmp_path)
    assert int(count) > len(ROOMS)


def test_importing_clkiln_imports_no_room() -> None:
    code = "import sys, clkiln; print(*[m for m in sys.modules if m.startswith('clkiln.')])"
    assert run(sys.executable, "-c", code, cwd=ROOT.parent).split() == []


def test_tests_are_collected_in_any_folder(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "clkiln").symlink_to(copy)
    pytest_ = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    some = ("tests/test_packaging.py", "tests/kernels/test_types.py", "tests/cli")
    listing = run(*pytest_, "--collect-only", "-q", *some, cwd=copy, **environment)
    assert "tests/test_packaging.py::test_tests_are_collected_in_any_folder" in listing
    run(*pytest_, "-q", "tests/runtime/test_icd.py", cwd=copy, **environment)


@pytest.mark.parametrize("line", ["import tuner", "from cache.rows import TrialRow"])
def test_rooms_are_not_imported_by_their_bare_names(line: str, copy: Path) -> None:
    file = copy / "tests/bare_import.py"
    file.write_text(f"{line}\n")
    ruff = (sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251")
    result = subprocess.run([*ruff, str(file)], cwd=copy, capture_output=True, text=True)
    file.unlink()
    assert result.returncode == 1
    assert "TID251" in result.stdout
