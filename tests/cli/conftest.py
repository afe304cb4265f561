"""The command line, called as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import clk_cli
import clk_engine


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., clk_cli.Result]:
    """``call("run", model, ...)``: exit code and what went to both outputs."""
    return clk_cli.caller(capsys, monkeypatch)


@pytest.fixture
def device() -> str:
    """A selector of one device."""
    return clk_engine.a_device().info.selector


@pytest.fixture
def model() -> Path:
    return clk_engine.small_model()
