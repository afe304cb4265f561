"""The devices on which kernels are tested: PoCL from pip, and Debian's where it is installed."""

from __future__ import annotations

import pytest

from clk_pocl import find_intel, find_pocl
from clk_run import Runner


@pytest.fixture(scope="session", params=["pip", "debian"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """One CPU device. Kernels built on it are kept for the session."""
    return Runner(find_pocl(request.param).handle)


@pytest.fixture(scope="session", params=["pip", "debian", "intel"])
def any_runner(request: pytest.FixtureRequest) -> Runner:
    """As ``runner``, and Intel's runtime: another compiler, with mathematics of its own."""
    device = find_intel() if request.param == "intel" else find_pocl(request.param)
    return Runner(device.handle)
