"""The devices on which kernels are tested: PoCL from pip, and Debian's where it is installed."""

from __future__ import annotations

import pytest

from clk_pocl import find_pocl
from clk_run import Runner


@pytest.fixture(scope="session", params=["pip", "debian"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """One CPU device. Kernels built on it are kept for the session."""
    return Runner(find_pocl(request.param).handle)
