"""Devices: what is there, what a selector means, which one is the default."""

from __future__ import annotations

import dataclasses
import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clk_devices import make_device, make_info, numbered
from clkiln.errors import DeviceError, UsageError
from clkiln.runtime import device as device_module
from clkiln.runtime.device import (
    Device,
    DeviceInfo,
    default_device,
    list_devices,
    memory_budget,
    parse_size,
    select_device,
    selector_from_environment,
)
from clkiln.runtime.faults import known_fault
from clkiln.runtime.identity import IDENTITY_FIELDS
from clkiln.runtime.limits import Limits, read_limits
from clkiln.runtime.opencl import cl

NAMES = st.text("abcx: 0123456789-()", min_size=1, max_size=12).map(str.strip).filter(bool)


@pytest.fixture(scope="module")
def present() -> list[Device]:
    devices = list_devices()
    assert devices, "the pocl extra, which the tests are installed with, brings a device"
    return devices


# --- identity ---------------------------------------------------------------------------------


def _other(value: Any) -> Any:
    """A value of the same type that differs."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value + "x"
        case tuple():
            return (*value, value[0])
        case frozenset():
            return value | {"other"}
        case Limits():
            return read_limits(["small"])
    raise AssertionError(value)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(DeviceInfo)])
def test_driver_key_follows_identity_and_nothing_else(field: str) -> None:
    info = make_info()
    changed = dataclasses.replace(info, **{field: _other(getattr(info, field))})
    assert (changed.driver_key != info.driver_key) == (field in (*IDENTITY_FIELDS, "limits"))


def test_driver_key_is_stable_text() -> None:
    # Written down: a key that moves with Python or with this code throws every cache away.
    assert make_info().driver_key == make_info(index=3).driver_key
    assert len(make_info().driver_key) == 32
    assert int(make_info().driver_key, 16) >= 0
    assert make_info(name="ä").driver_key != make_info(name="a").driver_key


def test_text_does_not_move_between_fields() -> None:
    joined = make_info(name="ab", platform="c")
    assert joined.driver_key != make_info(name="a", platform="bc").driver_key


# --- description ------------------------------------------------------------------------------


def test_info_has_what_kernels_ask_for() -> None:
    from clkiln.kernels.types import DeviceLimits

    asked = [n for n in vars(DeviceLimits) if not n.startswith("_")]
    assert asked
    assert all(hasattr(make_info(), name) for name in asked)


def test_json_contract() -> None:
    data = json.loads(json.dumps(make_info().as_dict()))
    expected = {
        *("index", "name", "type", "platform", "platform_version", "driver_version"),
        *("opencl_c_version", "compute_units", "global_memory", "max_alloc", "unified_memory"),
        *("local_memory", "local_memory_type", "max_work_group_size", "image2d_max_width"),
        *("image2d_max_height", "image_max_buffer_size", "fp16", "subgroups", "command_buffers"),
    }
    assert expected <= data.keys()
    assert data["driver_key"] == make_info().driver_key
    assert data["selector"] == "Acme OpenCL:Acme 1000"


def test_probed_features_do_not_change_the_identity() -> None:
    probed = make_info().with_features("packed_dot")
    assert probed.features == make_info().features | {"packed_dot"}
    assert probed.driver_key == make_info().driver_key


# --- listing ----------------------------------------------------------------------------------


def test_indices_are_places_and_devices_are_sound(present: list[Device]) -> None:
    assert [d.info.index for d in present] == list(range(len(present)))
    for info in (d.info for d in present):
        assert info.name and info.platform and info.driver_version
        assert info.compute_units > 0
        assert 0 < info.max_alloc <= info.global_memory
        assert info.max_work_group_size >= 1 and len(info.max_work_item_sizes) >= 3
        assert info.images == bool(info.image2d_max_width) == ("images" in info.features)
        assert info.fp16 == ("fp16" in info.features)
        assert info.subgroups == ("subgroups" in info.features)


def test_order_does_not_depend_on_the_loader(
    present: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    platforms = device_module._platforms()
    for seed in range(3):
        shuffled = random.Random(seed).sample(platforms, len(platforms))
        # A driver that two .icd files name shows its platform twice.
        monkeypatch.setattr(device_module, "_platforms", lambda s=shuffled: s + s)
        assert [d.info for d in list_devices()] == [d.info for d in present]


def test_a_failing_platform_hides_no_other(
    present: list[Device], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        name = "Broken platform"

        def get_devices(self, _type: int) -> list[Any]:
            code = cl.status_code.INVALID_PLATFORM
            raise cl.LogicError(cl._cl._ErrorRecord("out of order", code, "clGetDeviceIDs"))

        def __str__(self) -> str:
            return self.name

    platforms = device_module._platforms()
    monkeypatch.setattr(device_module, "_platforms", lambda: [Broken(), *platforms])
    assert [d.info for d in list_devices()] == [d.info for d in present]
    assert "Broken platform" in caplog.text


@pytest.mark.parametrize(
    "fault",
    [{"available": False}, {"compiler_available": False}, {"type": cl.device_type.CUSTOM}],
    ids=str,
)
def test_unusable_devices_are_left_out(
    fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = SimpleNamespace(
        **{
            "int_ptr": 1,
            "name": "odd",
            "type": cl.device_type.GPU,
            "available": True,
            "compiler_available": True,
            **fault,
        }
    )
    platform = SimpleNamespace(name="p", version="v", get_devices=lambda _type: [handle])
    monkeypatch.setattr(device_module, "_platforms", lambda: [platform])
    assert list_devices() == []


def test_every_device_computes(present: list[Device]) -> None:
    source = "kernel void twice(global float *x) { x[get_global_id(0)] *= 2.0f; }"
    for device in present:
        if known_fault(device.info):
            continue
        context = cl.Context([device.handle])
        queue = cl.CommandQueue(context)
        values = np.arange(64, dtype=np.float32)
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        buffer = cl.Buffer(context, flags, hostbuf=values)
        kernel = cl.Kernel(cl.Program(context, source).build(), "twice")
        kernel(queue, values.shape, None, buffer)
        result = np.empty_like(values)
        cl.enqueue_copy(queue, result, buffer)
        np.testing.assert_array_equal(result, 2 * values, err_msg=str(device))


# --- selectors --------------------------------------------------------------------------------

POCLS = numbered(
    {
        "name": "pthread-Intel(R) Xeon(R) Processor",
        "type": "cpu",
        "platform": "Portable Computing Language",
        "platform_version": "OpenCL 3.0 PoCL 3.0-rc2  Linux, Release, RELOC, LLVM 14.0.6",
        "driver_version": "3.0-rc2",
    },
    {
        "name": "pthread-skylake-avx512-Intel(R) Xeon(R) Processor",
        "type": "cpu",
        "platform": "Portable Computing Language",
        "platform_version": "OpenCL 3.0 PoCL 3.1+debian  Linux, None+Asserts, LLVM 15.0.6",
        "driver_version": "3.1+debian",
    },
)

MIXED = numbered(
    {"name": "RTX 3060", "platform": "NVIDIA CUDA"},
    {"name": "RTX 3060 Ti", "platform": "NVIDIA CUDA"},
    {"name": "gfx90a:sramecc+:xnack-", "platform": "AMD Accelerated Parallel Processing"},
    {"name": "Xeon 8480", "type": "cpu", "platform": "Intel(R) OpenCL", "compute_units": 8},
    {"name": "pthread-znver3", "type": "cpu", "platform": "Portable Computing Language"},
    {"name": "FPGA emulator", "type": "accelerator", "platform": "Intel(R) FPGA"},
)


@pytest.mark.parametrize(
    ("selector", "index"),
    [
        ("0", 0),
        (" 5 ", 5),
        ("rtx 3060", 0),  # a whole name goes before a longer one
        ("ti", 1),
        ("3060 TI", 1),
        ("gfx90a", 2),
        ("gfx90a:sramecc+:xnack-", 2),
        ("amd:gfx90a:sramecc+", 2),
        ("amd:", 2),
        ("8480", 3),
        ("Intel(R) OpenCL:Xeon 8480", 3),
        (":znver3", 4),
        ("portable:znver", 4),
        ("gpu", 0),
        ("CPU", 4),  # the best of its type: more compute units
        ("accelerator", 5),
    ],
)
def test_selectors(selector: str, index: int) -> None:
    assert select_device(selector, MIXED).info.index == index


@pytest.mark.parametrize(
    ("selector", "index"),
    [("PoCL 3.0:", 0), ("pocl 3.0-rc2:pthread", 0), ("pocl 3.1:", 1), ("3.1+debian:", 1)],
)
def test_platform_version_tells_two_pocls_apart(selector: str, index: int) -> None:
    assert select_device(selector, POCLS).info.index == index


def test_several_matches_are_listed_with_their_indices() -> None:
    with pytest.raises(DeviceError, match=r"several") as error:
        select_device("rtx", MIXED)
    assert "0: RTX 3060 (" in str(error.value)
    assert "1: RTX 3060 Ti (" in str(error.value)
    assert "gfx90a" not in str(error.value)


@pytest.mark.parametrize("selector", ["6", "99", "voodoo", "nvidia:znver3", "-1", "", ":", " "])
def test_no_match_lists_what_there_is(selector: str) -> None:
    with pytest.raises(DeviceError, match=r"no device matches") as error:
        select_device(selector, MIXED)
    assert all(f"{d.info.index}: {d.info.name}" in str(error.value) for d in MIXED)
    assert "\n" not in str(error.value)


def test_a_type_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="no device matches 'gpu'"):
        select_device("gpu", POCLS)


def test_no_device_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_platforms", list)
    for ask in (
        lambda: select_device("0"),
        lambda: select_device(None),
        lambda: default_device([]),
    ):
        with pytest.raises(DeviceError, match=r"clkiln\[pocl\].*pocl-opencl-icd"):
            ask()


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=5))
def test_a_selector_never_means_another_device(pairs: list[tuple[str, str]]) -> None:
    devices = numbered(*({"name": n, "platform": p} for n, p in pairs))
    for device in devices:
        assert select_device(str(device.info.index), devices) is device
        try:
            chosen = select_device(device.info.selector, devices)
        except DeviceError:
            continue  # ambiguous, or a number
        twins = [d for d in devices if d.info.selector == device.info.selector]
        assert chosen is device or device.info.selector in (d.info.name for d in devices)
        assert len(twins) == 1


def test_selector_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLKILN_DEVICE", raising=False)
    assert selector_from_environment() is None
    monkeypatch.setenv("CLKILN_DEVICE", "  ")
    assert selector_from_environment() is None
    monkeypatch.setenv("CLKILN_DEVICE", " gpu ")
    assert selector_from_environment() == "gpu"


# --- default ----------------------------------------------------------------------------------


def test_the_quickest_measured_device_wins_over_any_other() -> None:
    devices = [make_device(index=i, name=f"d{i}", type=t) for i, t in enumerate(("gpu", "cpu"))]
    rates = {devices[1].info.driver_key: 20.0, "gone": 1e9}
    chosen, reason = default_device(devices, rates)
    assert chosen is devices[1]
    assert "measured" in reason and "20.0" in reason
    rates[devices[0].info.driver_key] = 20.1
    assert default_device(devices, rates)[0] is devices[0]


def test_before_any_measurement_the_first_gpu() -> None:
    chosen, reason = default_device(MIXED)
    assert chosen is MIXED[0]
    assert "GPU" in reason


@pytest.mark.parametrize(
    "better",
    [
        {"compute_units": 17, "float_vector_width": 1},
        {"float_vector_width": 8},
        {"opencl_c_version": "OpenCL C 3.0"},
        {"driver_version": "7.10"},
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_best_cpu(better: dict[str, Any], place: int) -> None:
    plain = {"type": "cpu", "float_vector_width": 4}
    changes = [plain, plain]
    changes[place] = {**plain, **better}
    chosen, reason = default_device([*numbered(*changes), make_device(type="accelerator", index=2)])
    assert chosen.info.index == place
    assert "CPU" in reason


# --- memory -----------------------------------------------------------------------------------


@given(st.integers(1, 1 << 50), st.booleans(), st.sampled_from(["cpu", "gpu"]))
def test_memory_budget_leaves_a_share(total: int, unified: bool, kind: str) -> None:
    budget = memory_budget(make_info(global_memory=total, unified_memory=unified, type=kind))
    assert 0 <= budget <= total
    if unified or kind == "cpu":
        assert budget <= 0.75 * total


@given(st.integers(1, 4000), st.sampled_from(["", "K", "M", "G", "T"]), st.booleans())
def test_parse_size(number: int, unit: str, binary: bool) -> None:
    expected = number * 1024 ** ["", "K", "M", "G", "T"].index(unit)
    for text in (f"{number}{unit}", f" {number} {unit.lower()}", f"{number}{unit}B"):
        assert parse_size(text, "x") == expected
    if unit and binary:
        assert parse_size(f"{number}{unit}iB", "x") == expected
        assert parse_size(f"{number}.5{unit}", "x") == expected + expected // number // 2


@pytest.mark.parametrize("text", ["much", "-1G", "0", "1X", "1GG", "", "1e9", "nan", "0.1"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="BUDGET"):
        parse_size(text, "BUDGET")


def test_memory_budget_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLKILN_MEMORY_BUDGET", "512M")
    assert memory_budget(make_info()) == 512 << 20
    monkeypatch.setenv("CLKILN_MEMORY_BUDGET", "lots")
    with pytest.raises(UsageError, match="CLKILN_MEMORY_BUDGET"):
        memory_budget(make_info())
