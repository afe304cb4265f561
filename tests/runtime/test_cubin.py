"""Machine code for NVIDIA devices: where there is none, PTX stays."""

from __future__ import annotations

import time

import numpy as np
import pytest

from clkiln.kernels.source import Source
from clkiln.kernels.types import Geometry
from clkiln.runtime import cubin
from clkiln.runtime.context import Context
from clkiln.runtime.cubin import Linker, is_ptx
from clkiln.runtime.device import Device, list_devices
from clkiln.runtime.launch import Launch
from clkiln.runtime.program import Program, ProgramLoader

PTX = b"//\n// Generated\n\n.version 9.0\n.target sm_90, texmode_independent\n.address_size 64\n"
SCALE = Source(
    "__kernel __attribute__((reqd_work_group_size(32, 1, 1)))\n"
    "void scale(__global float *y) { y[get_global_id(0)] *= 3.0f; }",
    "scale",
    ("-cl-std=CL1.2",),
)


@pytest.mark.parametrize(
    ("binary", "expected"),
    [
        (PTX, True),
        (PTX.replace(b"sm_90,", b"sm_90a,"), True),
        (b"\x7fELF" + PTX, False),
        (b"poclbin\0" + bytes(100), False),
        # Binaries are large and many: only their heads are looked at.
        (b"poclbin\0" + bytes(5000) + PTX, False),
        (b"", False),
    ],
)
def test_ptx_is_told_from_other_binaries(binary: bytes, expected: bool) -> None:
    assert is_ptx(binary) is expected


def test_without_a_driver_library_there_is_no_cubin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin, "LIBRARY", "libnowhere.so.1")
    linker = Linker()
    assert linker.link(PTX) is None
    linker.close()


def test_what_is_no_ptx_is_not_linked() -> None:
    assert Linker().link(b"poclbin\0") is None


@pytest.fixture
def nvidia() -> Device:
    for device in list_devices():
        if device.info.platform == "NVIDIA CUDA":
            return device
    pytest.skip("only NVIDIA's driver links PTX into a cubin, and no device here is of it")


def test_a_cubin_runs_as_its_ptx_does(nvidia: Device) -> None:
    with Context(nvidia) as context:
        program = ProgramLoader(context).load(SCALE, "scale")
        linker = Linker()
        code = linker.link(program.binary())
        assert code is not None
        assert not is_ptx(code)
        assert linker.link(PTX + b".nonsense") is None
        linker.close()
        start = time.perf_counter()
        loaded = ProgramLoader(context)._from_binary(code, SCALE, "scale")
        assert isinstance(loaded, Program)
        assert loaded.binary() == code
        assert time.perf_counter() - start < 1.0
        x = np.arange(64, dtype=np.float32)
        tensor = context.upload(x, what="x")
        Launch(loaded, [tensor], Geometry((64,), (32,))).enqueue()
        np.testing.assert_array_equal(tensor.read(), 3 * x)
