"""Devices that pretend to other limits, and engines that refuse them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import clk_engine
from clkiln.errors import UnsupportedOperation
from clkiln.inference.engine import Engine
from clkiln.runtime.device import Device


def pretending(**limits: Any) -> Device:
    """The tests' device with other limits."""
    device = clk_engine.a_device()
    return replace(device, info=replace(device.info, **limits))


@contextmanager
def refused(taken: list[str], **options: Any) -> Iterator[list[str]]:
    """The lines of the error with which an engine ends before it has allocated anything."""
    lines: list[str] = []
    with pytest.raises(UnsupportedOperation) as caught, clk_engine.engine(**options):
        pass
    assert taken == []
    error = caught.value
    assert str(error) == f"{error.headline}: {'; '.join(error.details)}"
    assert clk_engine.a_device().info.name in error.headline
    lines += [error.headline, *error.details]
    yield lines


def logits(engine: Engine, *lengths: int) -> list[np.ndarray]:
    """Logits after prompts of ``lengths``, one behind the other."""
    found = []
    for length in lengths:
        engine.runner.feed(clk_engine.prompt(length, 515))
        found.append(engine.runner.logits())
    return found
