"""A model that was never tuned borrows from similar shapes: what it takes, and what it must not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clk_engine
import clk_planted
from clk_cache import Warnings, memory_store, quick, some_best
from clk_run import Limits
from clkiln.cache.rows import BestRow
from clkiln.cache.store import Store
from clkiln.errors import CacheMissError, OutOfDeviceMemory
from clkiln.harness.compare import Verdict
from clkiln.harness.operation import Operation
from clkiln.inference.choose import Choice, Chooser
from clkiln.inference.engine import Engine
from clkiln.inference.plan import origins
from clkiln.inference.verify import MOST_FLOPS, Verifier, affordable
from clkiln.kernels import SPECS
from clkiln.kernels.near import FAR, distance
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.variants import VariantRequest
from clkiln.runtime.context import Context
from clkiln.runtime.program import ProgramLoader

LIMITS = Limits(
    "cpu", 2, 1 << 20, 4096, (4096,) * 3, features=frozenset({"images", "image_buffers"})
)
GEMV = Workload.parse("gemv bias=no fuse=none k=96 n=160 w=q4_0")
FEASIBLE = SPECS["gemv"].feasible(GEMV, LIMITS)
configs = st.sampled_from(FEASIBLE)
QUESTION = "What is the capital of France?"


def chooser(store: Store) -> Chooser:
    return Chooser(store, "mine", LIMITS, VariantRequest())


def best(workload: Workload, config: Config, **changes: Any) -> BestRow:
    digest = SPECS[workload.op].digest()
    row = some_best(workload=str(workload), driver="mine", digest=digest, config=str(config))
    return some_best(**{**vars(row), **changes})


# -- choosing --------------------------------------------------------------------------------------

shapes = st.builds(
    GEMV.replace,
    n=st.sampled_from([16, 100, 160, 161, 320, 5000, 1 << 17]),
    k=st.sampled_from([32, 96, 128, 1024]),
    bias=st.sampled_from(["yes", "no"]),
    fuse=st.sampled_from(["none", "add", "swiglu"]),
    w=st.sampled_from(["f16", "q8_0", "q4_0", "q4_1"]),
)


@quick
@given(st.dictionaries(shapes, configs, max_size=6), st.none() | configs)
def test_the_nearest_that_fits(tuned: dict[Workload, Config], needed: Config | None) -> None:
    """Whatever was tuned: a configuration of the own space that this device can run."""
    spec = SPECS["gemv"]
    tuned.pop(GEMV, None)
    layout = spec.layout(GEMV, needed) if needed else None
    with memory_store() as store:
        for workload, config in tuned.items():
            store.set_best(best(workload, config))
        choice = chooser(store).choose(GEMV, layout)
    assert spec.contains(GEMV, choice.config)
    assert spec.check(GEMV, choice.config, LIMITS) is None
    if layout:
        assert spec.layout(GEMV, choice.config) == layout
    usable = [
        (distance(GEMV, other), str(other), other)
        for other, config in tuned.items()
        if distance(GEMV, other) <= FAR and layout in (None, spec.layout(GEMV, config))
    ]
    nearest = min(usable)[-1] if usable else None
    if nearest is None or tuned[nearest] == spec.safe(nearest, LIMITS):
        assert (choice.origin, choice.config) == ("default", spec.safe(GEMV, LIMITS, layout))
    else:
        assert choice == Choice(GEMV, tuned[nearest], "similar", nearest)
        assert str(nearest) in str(choice.fallback)
        assert str(choice.config) in str(choice.fallback)


def test_sizes_that_vary_go_before_other_shapes() -> None:
    gemm = Workload.parse("gemm bias=no fuse=none k=96 m=32 n=160 w=q4_0")
    first, second = (SPECS["gemm"].feasible(gemm, LIMITS)[i] for i in (5, 9))
    with memory_store() as store:
        store.set_best(best(gemm.replace(n=161), first))
        assert chooser(store).choose(gemm).origin == "similar"
        store.set_best(best(gemm.replace(m=8192), second))
        choice = chooser(store).choose(gemm)
    assert (choice.origin, choice.config, choice.fallback) == ("neighbour", second, None)


def test_an_edited_kernel_lends_nothing() -> None:
    with memory_store() as store:
        store.set_best(best(GEMV.replace(n=161), FEASIBLE[-1], digest="of another source"))
        assert chooser(store).choose(GEMV).origin == "default"


def test_what_is_wrong_three_times_is_wrong_for_good() -> None:
    """A kernel that fails with every borrowed configuration: no start tries them all."""
    with memory_store() as store:
        for n in range(161, 171):
            store.set_best(best(GEMV.replace(n=n), FEASIBLE[n]))
        choosing, tried = chooser(store), 0
        while (choice := choosing.choose(GEMV)).origin == "similar":
            choosing.ban(choice)
            tried += 1
    assert (choice.origin, tried) == ("default", 3)


@pytest.mark.parametrize("text", ["gemv", "gemv k=0 n=0 w=x", "gemv bias=1 fuse=2 k=a n=b w=3"])
def test_workloads_that_make_no_sense_lend_nothing(text: str) -> None:
    with memory_store() as store:
        row = best(GEMV, FEASIBLE[3])
        store.set_best(some_best(**{**vars(row), "workload": text}))
        assert chooser(store).choose(GEMV).origin == "default"


# -- verifying -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    with Context(clk_engine.a_device()) as context:
        yield context


@pytest.fixture
def planted() -> Iterator[Any]:
    yield clk_planted.install()
    del SPECS[clk_planted.PlantedSpec.op]


def verifier(context: Context, store: Store) -> Verifier:
    return Verifier(context, ProgramLoader(context, store), store, "mine")


def borrowed(way: str, m: int = 5, n: int = 37) -> Choice:
    workload = Workload.of("planted", m=m, n=n)
    return Choice(workload, clk_planted.how(way), "similar", workload.replace(n=64))


@pytest.mark.parametrize("way", ["good", "slow", "nan", "past_end", "off", "bucket", "syntax"])
def test_only_what_is_right_is_used(context: Context, planted: Any, way: str) -> None:
    """Planted kernels, on a real device; the second start knows without trying."""
    with memory_store() as store:
        problem = verifier(context, store).problem(borrowed(way))
        assert (problem is None) == (way in ("good", "slow")), problem
        later = verifier(context, store)
        later._try = None  # type: ignore[method-assign,assignment]
        assert later.problem(borrowed(way)) == problem


def test_a_program_that_is_wrong_here_and_was_right_there(context: Context, planted: Any) -> None:
    """``bucket`` is right for one row: only for the workload at hand a verdict holds."""
    with memory_store() as store:
        assert verifier(context, store).problem(borrowed("bucket", m=1)) is None
        assert verifier(context, store).problem(borrowed("bucket", m=5))


def test_an_interrupted_trial_is_no_verdict(
    context: Context, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, or memory that is short just now: the next start tries again."""
    with memory_store() as store:
        for error in (KeyboardInterrupt(), OutOfDeviceMemory("no room")):

            def fail(self: Operation, *args: object, error: Any = error) -> Verdict:
                raise error

            monkeypatch.setattr(Operation, "verify", fail)
            try:
                assert verifier(context, store).problem(borrowed("good")) == "no room"
            except KeyboardInterrupt:
                assert isinstance(error, KeyboardInterrupt)
            monkeypatch.undo()
            assert store.fact(f"verified {borrowed('good').workload}", driver="mine") == {}
        assert verifier(context, store).problem(borrowed("good")) is None


START = """
import os, sys, threading
from pathlib import Path
import clk_engine, clk_planted
from clkiln.cache.store import Store
from clkiln.inference.choose import Choice
from clkiln.inference.verify import Verifier
from clkiln.kernels.types import Workload
from clkiln.runtime.context import Context
from clkiln.runtime.program import ProgramLoader

clk_planted.install().doomed = True
workload = Workload.of("planted", m=5, n=37)
with Store.open(Path(sys.argv[1])) as store, Context(clk_engine.a_device()) as context:
    verifier = Verifier(context, ProgramLoader(context, store), store, "mine")
    choice = Choice(workload, clk_planted.how("endless"), "similar", workload)
    threading.Timer(float(sys.argv[2]), os._exit, [9]).start()
    print(verifier.problem(choice), flush=True)
    os._exit(0)
"""


def test_a_process_that_died_while_trying_does_so_once(tmp_path: Path) -> None:
    """A kernel that never ends, and a user who kills the start: the next one leaves it alone."""
    command = [sys.executable, "-c", START, str(tmp_path / "cache.sqlite"), "4"]
    folder = str(Path(clk_planted.__file__).parent)
    paths = [folder, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (first.returncode, first.stdout) == (9, ""), first.stderr
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "did not end" in second.stdout


@pytest.mark.parametrize(
    "text",
    [
        "gemm bias=no fuse=swiglu k=4096 m=256 n=14336 w=q4_0",
        "attention_prefill ctx=2048 head_dim=128 heads=32 kv=f32 kv_heads=8 m=256",
        "attention_decode ctx=131072 head_dim=128 heads=32 kv=f32 kv_heads=8",
        "gemm bias=no fuse=none k=96 m=32 n=160 w=q4_0",
    ],
)
def test_what_is_verified_is_the_same_program(text: str) -> None:
    workload = Workload.parse(text)
    spec = SPECS[workload.op]
    config = spec.safe(workload, LIMITS)
    small = affordable(workload, config)
    assert spec.source(small, config).digest == spec.source(workload, config).digest
    if spec.flops(workload) <= MOST_FLOPS:
        assert small == workload
    else:
        assert spec.flops(small) < spec.flops(workload) / 4


# -- a whole model ---------------------------------------------------------------------------------


@pytest.fixture
def lender(tmp_path: Path) -> Path:
    """A cache file in which another model is tuned: odd configurations, none of them a default."""
    cache = tmp_path / "cache.sqlite"
    model = clk_engine.variation(
        tmp_path / "other.gguf", hidden=128, intermediate=256, vocab=600, head_dim=32
    )
    with clk_engine.engine(model, cache=cache) as other:
        limits, driver = other.device, other.device.driver_key
        rows = []
        for workload in other.runner.planner.choices:
            spec, safe = SPECS[workload.op], SPECS[workload.op].safe(workload, limits)
            layout = spec.layout(workload, safe)
            odd = [
                config
                for config in spec.feasible(workload, limits, "buffer")
                if config != safe and spec.layout(workload, config) == layout
            ]
            # Not far from the safe one: it fits the other model's smaller sizes, too.
            odd.sort(key=lambda c: sum(dict(safe.params).get(n) != v for n, v in c.params))
            config = str(odd[0] if odd else safe)
            rows.append(BestRow(str(workload), driver, spec.digest(), config, 1e-3))
        clk_engine.plant(other.store, rows)
    return cache


def ask(engine: Engine) -> list[int]:
    return engine.generate(QUESTION, temperature=0, max_tokens=4).token_ids


def test_a_model_never_tuned_borrows_and_says_so(
    lender: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clk_engine.engine() as plain:
        expected = ask(plain)
        assert set(origins(plain.runner.planner.choices)) == {"default"}
    warnings = Warnings()
    with clk_engine.engine(cache=lender, warn=warnings.append) as engine:
        assert ask(engine) == expected
        choices = engine.runner.planner.choices
        similar = [choice for choice in choices.values() if choice.origin == "similar"]
        assert {c.workload.op for c in similar} >= {"gemv", "gemm", "rmsnorm", "attention_decode"}
        assert not engine.tuned
        assert {c.fallback for c in similar} <= {*engine.fallbacks()}
    assert len(warnings) == 1
    assert "parameters of similar shapes" in warnings[0]
    with pytest.raises(CacheMissError, match="not tuned, as tuned for"):
        clk_engine.engine(cache=lender, require_cache=True).__enter__()
    # The next start verifies nothing and compiles nothing.
    monkeypatch.setattr(Operation, "verify", None)
    with clk_engine.engine(cache=lender) as warm:
        assert ask(warm) == expected
        assert origins(warm.runner.planner.choices) == origins(choices)
        assert warm.runner.loader.counts.compiled == 0


def test_what_is_wrong_here_is_not_borrowed(lender: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = Operation.verify

    def verdict(self: Operation, *args: Any, **named: Any) -> Verdict:
        if self.workload.op in ("gemm", "rope"):
            return Verdict(False, 1.0, "off by one")
        return verify(self, *args, **named)

    monkeypatch.setattr(Operation, "verify", verdict)
    warnings = Warnings()
    with clk_engine.engine(cache=lender, warn=warnings.append) as engine:
        for workload, choice in engine.runner.planner.choices.items():
            assert choice.origin != "similar" or workload.op not in ("gemm", "rope")
    assert any("is wrong here" in line and "off by one" in line for line in warnings)
