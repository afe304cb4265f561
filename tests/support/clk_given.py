"""What a test is given by the environment: files that are too large to lie beside the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def given(variable: str, what: str) -> Path:
    """The path in an environment variable.

    Skips where there is none: fetching ``what`` needs a network, and a test run without one is none
    that failed.
    """
    path = Path(os.environ.get(variable) or os.devnull)
    if not (path.is_file() or path.is_dir()):
        pytest.skip(f"needs {what}: set {variable} to its path")
    return path


#: Windows keeps a user's folders to the user by access lists, and clkiln looks at none there.
posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no modes and owners to look at")
as_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0,
    reason="only root may give a file to another user or group, as CI, which is root, does",
)
