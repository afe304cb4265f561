"""The same logits on every driver at hand, in every form, under every limit profile.

On Oclgrind, a simulator, whatever it reports of a race or a stray access fails the case, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

import clk_engine
import clk_simulated
from clk_logits import EXPECTED, check, free_errors
from clk_oclgrind import simulator
from clk_pocl import find_intel, find_pocl
from clkiln.runtime.device import Device
from clkiln.runtime.limits import PROFILES

DRIVERS = ("pip", "debian", "intel")
FORMS = ("buffer", "image", "free")
pytestmark = pytest.mark.long
#: Seconds for an engine on the simulator.
PATIENCE = 900


def find_device(driver: str) -> Device:
    return find_intel() if driver == "intel" else find_pocl(driver)


def cases(*drivers: str) -> list[object]:
    """Each with a model of its own, in turn."""
    found = []
    for index, case in enumerate(product(drivers, FORMS, ("", *PROFILES))):
        model = clk_engine.MODELS[index % len(clk_engine.MODELS)]
        found.append(pytest.param(*case, model))
    return found


@pytest.mark.parametrize(("driver", "form", "profile", "model"), cases(*DRIVERS))
def test_logits(driver: str, form: str, profile: str, model: str, tmp_path: Path) -> None:
    found = free_errors(
        clk_engine.model(model), find_device(driver), form, tmp_path / "cache.sqlite",
        prompts=(1, 7, 40), decoded=4, limits=[profile] if profile else [],
    )  # fmt: skip
    check(found, EXPECTED["f32"])


@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize(("driver", "form", "profile", "model"), cases("simulator"))
def test_logits_on_a_simulator(
    driver: str, form: str, profile: str, model: str, tmp_path: Path
) -> None:
    """Two layers. It takes what an image is created with for uninitialised: no check of that."""
    path = clk_engine.model(model, clk_simulated.VOCABULARY)
    done = subprocess.run(
        [sys.executable, clk_simulated.__file__, str(path), form, profile],
        env=simulator(os.environ, tmp_path), capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stderr.strip(), done.stderr[:2000]
    check(json.loads(done.stdout), EXPECTED["f32"])
