"""The devices on which kernels are tested: PoCL from pip, and Debian's where it is installed."""

from __future__ import annotations

import pytest

from clk_run import Runner
from clkiln.runtime.opencl import cl


@pytest.fixture(scope="session", params=["pip", "debian"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """One CPU device. Kernels built on it are kept for the session."""
    for platform in cl.get_platforms():
        debian = "debian" in platform.version
        if "PoCL" in platform.version and debian == (request.param == "debian"):
            return Runner(platform.get_devices()[0])
    pytest.skip(f"no PoCL from {request.param} here")
