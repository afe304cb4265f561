"""Programs: built once, from a kept binary where there is one, and every compile counted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from clk_pocl import a_device
from clkiln.errors import BuildError, CacheMissError, LaunchError
from clkiln.kernels.source import Source
from clkiln.kernels.types import Geometry
from clkiln.runtime.context import Context
from clkiln.runtime.cubin import Linker
from clkiln.runtime.launch import Launch
from clkiln.runtime.program import Program, ProgramLoader, program_key

FILL = Source(
    "__kernel __attribute__((reqd_work_group_size(4, 1, 1)))\n"
    "void fill(__global int *y) { y[get_global_id(0)] = VALUE + get_local_size(0); }",
    "fill",
    ("-cl-std=CL1.2", "-DVALUE=3"),
)
BROKEN = Source("__kernel void broken(__global int *y) { y[0] = nowhere; }", "broken", ())


class Memory:
    """A store in memory that counts how often it was asked."""

    keeps = True

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.labels: dict[str, tuple[str, str]] = {}
        self.queries = 0

    def get_binaries(self, keys: Iterable[str]) -> dict[str, bytes]:
        self.queries += 1
        return {key: self.kept[key] for key in keys if key in self.kept}

    def put_binary(self, key: str, payload: bytes, *, label: str, driver: str) -> None:
        self.kept[key], self.labels[key] = payload, (label, driver)


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    with Context(a_device()) as context:
        yield context


@pytest.fixture(scope="module")
def filled(context: Context) -> Memory:
    """A store with the binary of ``FILL``."""
    store = Memory()
    loader = ProgramLoader(context, store)
    launch(loader, FILL)
    loader.keep_fresh()
    return store


def with_value(value: int) -> Source:
    return replace(FILL, options=("-cl-std=CL1.2", f"-DVALUE={value}"))


def launch(loader: ProgramLoader, source: Source) -> list[int]:
    """Load, launch, and say so; what the kernel wrote."""
    program = loader.load(source, "fill it")
    tensor = loader.context.upload(np.zeros(8, np.int32), what="y")
    Launch(program, [tensor], Geometry((8,), (4,))).enqueue()
    written: list[int] = tensor.read().tolist()
    tensor.release()
    program.launched = True
    return written


def copy_of(store: Memory) -> Memory:
    twin = Memory()
    twin.kept.update(store.kept)
    return twin


# --- from the source ------------------------------------------------------------------------------


def test_a_source_is_compiled_once(context: Context) -> None:
    loader = ProgramLoader(context)
    assert launch(loader, FILL) == [7] * 8
    assert loader.load(FILL, "again") is loader.load(FILL, "and again")
    assert (loader.counts.compiled, loader.counts.from_cache) == (1, 0)
    assert loader.counts.compiled_labels == ["fill it"]
    assert loader.counts.seconds > 0


def test_compile_errors_name_the_label_and_carry_the_log(context: Context) -> None:
    loader = ProgramLoader(context)
    with pytest.raises(BuildError, match=r"(?s)^broken one does not compile on .*nowhere"):
        loader.load(BROKEN, "broken one")
    assert loader.counts.compiled == 0


def test_a_kernel_that_is_not_there_is_named(context: Context) -> None:
    program = ProgramLoader(context).load(replace(FILL, kernel="full"), "fill it")
    with pytest.raises(LaunchError, match="fill it: making the kernel failed"):
        program.kernel()


def test_limits_of_the_compiled_kernel(context: Context) -> None:
    text = """__kernel void reverse(__global int *y) {
      __local int a[64];
      a[get_local_id(0)] = y[get_local_id(0)];
      barrier(CLK_LOCAL_MEM_FENCE);
      y[get_local_id(0)] = a[63 - get_local_id(0)];
    }"""
    loader = ProgramLoader(context)
    local = loader.load(Source(text, "reverse", ()), "reverse")
    assert local.local_memory() >= 256 > loader.load(FILL, "fill").local_memory()
    assert 1 <= local.work_group_limit() <= context.info.max_work_group_size


# --- from the store -------------------------------------------------------------------------------


def test_a_kept_binary_is_used(context: Context, filled: Memory) -> None:
    loader = ProgramLoader(context, filled, require_cache=True)
    assert launch(loader, FILL) == [7] * 8
    assert (loader.counts.compiled, loader.counts.from_cache) == (0, 1)
    assert not loader.counts.compiled_labels


def test_what_is_kept_has_label_and_driver(context: Context, filled: Memory) -> None:
    key = program_key(context.info.driver_key, FILL)
    assert filled.labels == {key: ("fill it", context.info.driver_key)}
    assert ProgramLoader(context).key(FILL) == key


def test_only_what_was_launched_is_kept(context: Context) -> None:
    """Before the first launch PoCL's binary is not complete."""
    store = Memory()
    loader = ProgramLoader(context, store)
    program = loader.load(FILL, "fill it")
    loader.keep_fresh()
    assert not store.kept
    launch(loader, FILL)
    loader.keep_fresh()
    assert list(store.kept.values()) == [program.binary()]
    store.kept.clear()
    loader.keep_fresh()
    assert not store.kept  # each only once


def test_prefetch_asks_once_for_all(context: Context, filled: Memory) -> None:
    store = copy_of(filled)
    loader = ProgramLoader(context, store)
    loader.prefetch([FILL, with_value(4), FILL])
    assert store.queries == 1
    assert launch(loader, FILL) == [7] * 8
    assert store.queries == 1
    assert (loader.counts.compiled, loader.counts.from_cache) == (0, 1)


def test_without_a_store_all_is_compiled(context: Context) -> None:
    loader = ProgramLoader(context)
    loader.prefetch([FILL])
    launch(loader, FILL)
    loader.keep_fresh()
    assert loader.counts.compiled == 1


@pytest.mark.parametrize("payload", [b"", b"no binary at all", b"poclbin" + bytes(64)])
def test_a_binary_that_the_driver_refuses_is_a_miss(
    context: Context, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, a compile, and the next start finds a sound binary."""
    store = Memory()
    key = program_key(context.info.driver_key, FILL)
    store.kept[key] = payload
    loader = ProgramLoader(context, store)
    with caplog.at_level(logging.WARNING):
        assert launch(loader, FILL) == [7] * 8
    assert (loader.counts.compiled, loader.counts.from_cache) == (1, 0)
    assert len(caplog.records) == 1
    assert "fill it: the driver refused its cached binary" in caplog.text
    loader.keep_fresh()
    assert store.kept[key] != payload
    again = ProgramLoader(context, store)
    assert launch(again, FILL) == [7] * 8 and again.counts.from_cache == 1


def test_a_binary_without_the_kernel_is_a_miss(context: Context, filled: Memory) -> None:
    """As a file would hold that was written by a clkiln with other kernel names."""
    store = Memory()
    other = replace(FILL, text=FILL.text.replace("fill", "pour"), kernel="pour")
    store.kept[program_key(context.info.driver_key, other)] = next(iter(filled.kept.values()))
    loader = ProgramLoader(context, store)
    assert launch(loader, other) == [7] * 8
    assert (loader.counts.compiled, loader.counts.from_cache) == (1, 0)


@pytest.mark.parametrize("payload", [None, b"no binary at all"])
def test_require_cache_makes_a_miss_an_error(context: Context, payload: bytes | None) -> None:
    store = Memory()
    if payload is not None:
        store.kept[program_key(context.info.driver_key, FILL)] = payload
    loader = ProgramLoader(context, store, require_cache=True)
    with pytest.raises(CacheMissError, match=r"^fill it: no binary"):
        loader.load(FILL, "fill it")
    assert loader.counts.compiled == 0


# --- keys -----------------------------------------------------------------------------------------


def test_key_changes_with_everything() -> None:
    sources = [
        FILL,
        with_value(4),
        replace(FILL, text=FILL.text + " "),
        replace(FILL, kernel="other"),
        replace(FILL, options=tuple(reversed(FILL.options))),
    ]
    keys = {program_key(driver, source) for driver in ("one", "two", "") for source in sources}
    assert len(keys) == 3 * len(sources)
    assert program_key("one", FILL) == program_key("one", replace(FILL))


def test_another_value_is_another_program(context: Context, filled: Memory) -> None:
    """Nothing that was built with other options is ever taken for it."""
    loader = ProgramLoader(context, copy_of(filled))
    assert [launch(loader, with_value(v))[0] for v in (3, 5, 3)] == [7, 9, 7]
    assert (loader.counts.compiled, loader.counts.from_cache) == (1, 1)


def test_nothing_is_asked_of_the_driver_where_nothing_is_kept(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Memory()
    store.keeps = False
    loader = ProgramLoader(context, store)
    launch(loader, FILL)
    monkeypatch.setattr(Program, "binary", lambda program: pytest.fail("asked"))
    loader.keep_fresh()
    assert store.kept == {}


@pytest.mark.parametrize("refused", [False, True])
def test_machine_code_replaces_ptx_where_the_driver_takes_it(
    context: Context, filled: Memory, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """PoCL's binary stands for machine code: what is kept was loaded once before."""
    (good,) = filled.kept.values()
    ptx = b".version 9.0\n.target sm_90, texmode_independent\n"
    cubin = b"\x7fELF but no program" if refused else good
    monkeypatch.setattr(Program, "binary", lambda program: ptx)
    monkeypatch.setattr(Linker, "link", lambda linker, binary: cubin if binary == ptx else None)
    store = Memory()
    loader = ProgramLoader(context, store)
    launch(loader, FILL)
    loader.keep_fresh()
    assert list(store.kept.values()) == [ptx if refused else good]
