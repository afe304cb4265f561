"""What every test runs in: folders of its own, and none of the user's settings."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from clk_given import given

# The same examples at every run: a failure is the change's, and not the day's.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

_FOLDER = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any test module imports OpenCL, and for every child process.

    The drivers read their settings once, so a fixture would come too late.
    """
    folder = Path(tempfile.mkdtemp(prefix="clkiln-tests-"))
    config.stash[_FOLDER] = folder
    own = (n for n in os.environ if n.startswith("CLKILN_"))
    for name in [name for name in own if not name.startswith("CLKILN_TEST_")]:
        del os.environ[name]
    # A model that could not be fetched is no model: what needs one looks at the variable and skips.
    if not Path(os.environ.get("CLKILN_TEST_MODEL", "")).is_file():
        os.environ.pop("CLKILN_TEST_MODEL", None)
    (folder / "pocl").mkdir()
    os.environ["CLKILN_CACHE_DIR"] = str(folder / "clkiln")
    os.environ["POCL_CACHE_DIR"] = str(folder / "pocl")
    os.environ["PYOPENCL_NO_CACHE"] = "1"


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``CLKILN_CACHE_DIR`` for one test."""
    folder = tmp_path / "clkiln-cache"
    folder.mkdir()
    monkeypatch.setenv("CLKILN_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def model_file() -> Path:
    """The small real model; ``make model`` fetches it. Tests skip where it is not there."""
    return given("CLKILN_TEST_MODEL", "the small model, which make test fetches")
