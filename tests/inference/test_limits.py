"""The engine under limit profiles: right logits, and parameters that stay with their device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

import clk_engine
from clk_logits import EXPECTED, check, errors
from clk_pocl import a_device, find_pocl
from clkiln.errors import UnsupportedOperation, UsageError
from clkiln.inference.devices import choose_device
from clkiln.runtime.device import Device
from clkiln.runtime.limits import PROFILES, read_limits
from clkiln.runtime.pretend import limited

KINDS = ("buffer", "image")
#: What a CPU is given hardly needs local memory and no large groups: so PoCL is also told to be a
#: GPU, whose parameters go to the limits.
TYPES = ("cpu", "gpu")
QUICK = {("small", "image", "gpu")}


def told(kind: str) -> Device:
    """PoCL as a device of another type."""
    device = find_pocl("debian")
    return Device(replace(device.info, type=kind), device.handle)


def cases() -> Iterator[object]:
    for case in product(PROFILES, KINDS, TYPES):
        yield pytest.param(*case, marks=() if case in QUICK else pytest.mark.long)


@pytest.mark.parametrize(("name", "kind", "type"), list(cases()))
def test_logits_under_limits(name: str, kind: str, type: str, tmp_path: Path) -> None:
    """Whatever breaks a limit is refused by the runtime, so that this would end with an error."""
    found = errors(
        clk_engine.model("smollm2/q4_1"), told(type), "f32", kind, (1, 7, 40), 4,
        limits=[name], cache=tmp_path / "cache.sqlite",
    )  # fmt: skip
    check(found, EXPECTED["f32"])


@pytest.mark.long
@pytest.mark.parametrize(("name", "type"), list(product(clk_engine.MODELS, TYPES)))
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_on_the_smallest_device(name: str, type: str, kind: str) -> None:
    found = errors(clk_engine.model(name), told(type), "f32", kind, (1, 7, 40), 4, limits=["small"])
    check(found, EXPECTED["f32"])


@pytest.mark.long
@pytest.mark.parametrize(("name", "kind"), list(product(PROFILES, KINDS)))
def test_the_real_model_under_limits(model_file: Path, name: str, kind: str) -> None:
    found = errors(
        model_file, find_pocl("debian"), "f32", kind, (1, 7, 64), 8, limits=[name]
    )  # fmt: skip
    check(found, EXPECTED["f32"])


def test_images_that_are_asked_for_and_not_there() -> None:
    """Asked of all, what can't lie in images lies in buffers and says so; of one, it is refused."""
    said: list[str] = []
    device = find_pocl("debian")
    with clk_engine.engine(
        device=device, variant=["image"], limits=["no-images"], warn=said.append
    ) as engine:
        variants = {c.config.variant for c in engine.runner.planner.choices.values()}
    assert variants == {"buffer"}
    assert any("not as asked" in text and "gemv" in text for text in said)
    with (
        pytest.raises(UnsupportedOperation, match=r"gemv .*images"),
        clk_engine.engine(device=device, variant=["gemv=image"], limits=["no-images"]),
    ):
        pass


# -- whose the parameters are ----------------------------------------------------------------------


@pytest.mark.parametrize("tuned", [(), ("local-48k",)])
def test_what_is_tuned_under_limits_is_not_for_others(
    tmp_path: Path, tuned: tuple[str, ...]
) -> None:
    """Neither the device's own winners nor those under other limits, nor as an older driver's."""
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with clk_engine.engine(cache=cache, limits=tuned) as engine:
        clk_engine.play_tuning(engine)
        rows = engine.store.best_rows()
    for limits in ((), ("local-48k",), ("local-32k",)):
        with clk_engine.engine(cache=cache, limits=limits) as engine:
            origins = {choice.origin for choice in engine.runner.planner.choices.values()}
            assert origins == ({"tuned"} if limits == tuned else {"default"}), limits
            assert engine.store.best_rows() == rows


def test_an_older_driver_is_one_of_the_same_limits(tmp_path: Path) -> None:
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with clk_engine.engine(cache=cache, limits=["local-48k"]) as engine:
        limits = str(engine.device.limits)
        clk_engine.play_tuning(engine, driver=f"{'0' * 32}+{limits}")
    copy = shutil.copyfile(cache, tmp_path / "copy.sqlite")
    with clk_engine.engine(cache=cache, limits=["local-48k"]) as engine:
        assert "older driver" in {c.origin for c in engine.runner.planner.choices.values()}
    with clk_engine.engine(cache=copy) as engine:
        assert {c.origin for c in engine.runner.planner.choices.values()} == {"default"}


# -- which device ----------------------------------------------------------------------------------


def test_limits_go_with_every_way_to_name_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = a_device()
    small = limited(device, read_limits(["small"]))
    ignore: list[str] = []
    for asked in (device, device.info.selector):
        found, _ = choose_device(asked, "", ignore.append, ["small"])
        assert found.info == small.info
    monkeypatch.setenv("CLKILN_DEVICE", device.info.selector)
    monkeypatch.setenv("CLKILN_LIMITS", "small")
    assert choose_device(None, "", ignore.append)[0].info == small.info
    # A device that somebody hands over is what it is.
    assert choose_device(device, "", ignore.append)[0] is device
    with pytest.raises(UsageError, match="no limits 'smal'; did you mean small"):
        choose_device(device, "", ignore.append, ["smal"])
