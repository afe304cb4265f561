"""Checks of small models as the command line makes them, without its words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import clk_engine
from clkiln.inference.check import examine
from clkiln.inference.engine import Engine
from clkiln.inference.exam import Effort
from clkiln.inference.findings import CheckResult
from clkiln.runtime.device import Device

#: Enough to run each kind of step, and little enough for a test.
LITTLE = Effort(2, (5, 1), 1e9, random=False, whole=False)


def loader(
    cache: Path, model: Path | None = None, device: Device | None = None, **options: Any
) -> Callable[[], Engine]:
    """What loads an engine, the same each time, whose start checks nothing and warns nobody."""
    given = {"check": False, "warn": lambda text: None, **options}
    place = device or clk_engine.a_device()
    return partial(Engine.load, model or clk_engine.small_model(), place, cache, **given)


def checked(
    cache: Path, effort: Effort = LITTLE, model: Path | None = None, **options: Any
) -> CheckResult:
    """What a check of a model finds; the engine that it leaves is closed."""
    load = loader(cache, model, **options)
    result, engine = examine(load(), load, effort)
    if engine is not None:
        engine.close()
    return result
