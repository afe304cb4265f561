"""Models whose matrices are too large for the device: split, and as right as whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import clk_engine
import clk_logits
import clkiln
from clk_decoder64 import Decoder64
from clk_logits import EXPECTED
from clk_models import write_model
from clk_pocl import a_device, find_pocl
from clk_run import Limits
from clk_tuning import with_roofs
from clkiln.api import TuningJob
from clkiln.cache.store import Store
from clkiln.errors import ContextLengthError, OutOfDeviceMemory, UnsupportedOperation
from clkiln.inference.config import ModelConfig
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.graph import MATRIX_OPS, Graph, Step, uses
from clkiln.inference.kv_cache import BLOCK, DEFAULT_KV
from clkiln.inference.weights import Weights
from clkiln.kernels import SPECS
from clkiln.kernels.types import Workload
from clkiln.runtime.device import Device

#: An image of 2048 texels: 8192 floats, 65536 codes of 4 bits.
ROW = {"image2d_max_width": 2048, "image2d_max_height": 1}
#: As large as what 256 tokens of the model below take in float32, and no images.
SMALL_ALLOC = {"max_alloc": 256 * 384 * 4, "features": frozenset[str](), "images": False}
SIZES: dict[str, Any] = {"hidden": 256, "intermediate": 512, "head_dim": 32, "context": 512}


def narrow(device: Device, **limits: Any) -> Device:
    """``device``, which says of itself that it can do less."""
    return Device(replace(device.info, **limits), device.handle)


@cache
def model(name: str) -> Path:
    """The random model ``architecture/format`` of these tests' sizes."""
    architecture, _, coding = name.partition("/")
    own = {**clk_engine.ARCHITECTURES[architecture], **SIZES}
    own["dtype"] = clk_engine.FORMATS[coding]
    if coding.endswith("k"):
        own["head_dim"] = clk_engine.sizes(coding, own["heads"])["head_dim"]
    if coding == "f32":
        own["intermediate"] = 320
    path = clk_engine.small_model().parent / f"split-{name.replace('/', '-')}.gguf"
    return write_model(path, vocab=515 if coding != "f32" else 2003, **own)


def graph(path: Path, limits: Limits | None) -> Graph:
    file = GGUFFile.open(path)
    config = ModelConfig.from_gguf(file)
    return Graph(config, Weights(file, config), DEFAULT_KV, limits)


# -- what the graph lists --------------------------------------------------------------------------


def all_steps(listed: Graph) -> list[Step]:
    steps = [step for m in (1, 32, 256) for step in listed.body(m, 512)]
    return steps + list(listed.head())


@pytest.mark.parametrize("name", clk_engine.MODELS)
def test_what_another_context_changes_is_counted_over_all_layers(name: str) -> None:
    """Where one layer's matrix is in pieces and another's is not, only one has a rotary launch."""
    seen = set()
    for most in (1 << 30, *range(4_000, 400_000, 7_000)):
        listed = graph(clk_engine.model(name), Limits(max_alloc=most))
        for m, ctx in ((1, 128), (1, 512), (32, 512)):
            wanted = Counter(s.workload for s in listed.body(m, ctx) if "ctx" in str(s.workload))
            assert listed.of_context(m, ctx) == wanted
            seen.add(sum(n for workload, n in wanted.items() if workload.op == "rope"))
    assert len(seen) > 1 or name.startswith("qwen3")


@pytest.mark.parametrize("name", clk_engine.MODELS)
def test_a_model_that_fits_is_listed_as_without_limits(name: str) -> None:
    path = clk_engine.model(name)
    least = Limits(features=frozenset({"images"}))
    assert all_steps(graph(path, least)) == all_steps(graph(path, None))


@pytest.mark.parametrize("name", ["llama3/q8_0", "qwen2.5/q4_k_m", "qwen3/f32"])
def test_pieces_take_the_place_of_what_is_too_large(name: str) -> None:
    """Each operation on a matrix becomes operations on all of its rows, in order, one by one."""
    limits = Limits(features=frozenset({"images"}), **ROW)
    whole, cut = (all_steps(graph(clk_engine.model(name), of)) for of in (None, limits))
    fused = [step for step in whole if step.workload.tag("fuse", "none") == "qkv"]
    rope = [step for step in cut if step.workload.op == "rope"]
    for step in whole:
        if step.workload.op not in MATRIX_OPS:
            assert step in cut
            continue
        layer = step.tensors["w"]
        own = [
            s
            for s in cut
            if s.tensors.get("w", "").partition("[")[0] == layer
            and s.workload.op == step.workload.op
            and dict(s.workload.items).get("m") == dict(step.workload.items).get("m")
        ]
        if own == [step]:
            continue
        n, end = step.workload.size("n"), 0
        for piece in own:
            found = re.fullmatch(r".*\[(\d+):(\d+)\]", piece.tensors["w"])
            assert found and int(found[1]) == end
            assert piece.tensors["piece"] == f"piece {end}"
            assert piece.workload.size("n") == int(found[2]) - end
            assert piece.workload.size("of") == n
            end = int(found[2])
        assert end == n
        if step in fused:
            assert {piece.workload.tag("fuse") for piece in own} == {"none"}
            caches = {step.tensors["k_cache"], step.tensors["v_cache"]}
            assert any(caches <= {*s.tensors.values()} for s in rope if s.workload.size("m") == 1)


def test_the_tuner_learns_of_pieces() -> None:
    """As many launches as pieces, and one layout for all that read a piece."""
    limits = Limits(features=frozenset({"images"}), **ROW)
    listed = graph(model("smollm2/q4_1"), limits)
    found = {use.workload: use for use in uses(listed, 512)}
    decode = [*listed.body(1, 512), *listed.head()]
    assert {*found} >= {step.workload for step in decode}
    heads = [u for u in found.values() if u.workload.op == "gemv" and u.workload.size("n") == 176]
    [head] = [use for use in heads if dict(use.workload.items).get("of") == 515]
    assert head.launches == 2
    assert head.workload == Workload.of(
        "gemv", bias="no", fuse="none", k=256, n=176, of=515, w="q4_1"
    )
    [look_up] = [
        use
        for use in found.values()
        if str(use.workload) == "embedding k=256 m=1 n=176 of=515 w=q4_1"
    ]
    assert head.group == look_up.group, "tied: they read the same pieces"


# -- what comes out --------------------------------------------------------------------------------

ARCHITECTURES = ("llama3", "llama biases", "smollm2", "qwen1.5", "qwen2.5", "qwen3")
CODINGS = ("f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q4_k", "q6_k", "mixed", "mixed k")
USUAL = {("qwen1.5/f16", "image")}


def some_and_rest() -> Iterator[object]:
    """Each architecture in one format and each format in one architecture; most are long."""
    names = [
        f"{ARCHITECTURES[(i + j) % len(ARCHITECTURES)]}/{coding}"
        for i, coding in enumerate(CODINGS)
        for j in (0, 3)
    ]
    for name in sorted({*names, *(name for name, _ in USUAL)}):
        for kind in ("buffer", "image"):
            marks = () if (name, kind) in USUAL else pytest.mark.long
            yield pytest.param(name, kind, marks=marks, id=f"{name}-{kind}")


def check(path: Path, device: Device, kind: str, prompts: tuple[int, ...], decoded: int) -> None:
    """All matrices but the smallest are split, and logits are those of the reference."""
    want = clk_logits.reference(path, "f32", prompts, decoded)
    with clk_engine.engine(path, device, kv_dtype="f32", variant=[kind]) as engine:
        cut = [w for w in engine.runner.planner.choices if "of" in dict(w.items)]
        assert {workload.op for workload in cut} == {*MATRIX_OPS}
        assert {w.tag("fuse") for w in cut if w.op == "gemv"} >= {"none", "swiglu"}
        for workload, choice in engine.runner.planner.choices.items():
            if workload.op in MATRIX_OPS:
                assert choice.config.variant == kind
        found = {
            where: clk_engine.relative_error(got, expected)
            for where, got, expected in clk_logits.run(engine, want)
        }
    clk_logits.check(found, EXPECTED["f32"])


@pytest.mark.parametrize(("name", "kind"), [*some_and_rest()])
def test_small_images(name: str, kind: str) -> None:
    """What is split for the sake of images may lie in buffers, too."""
    check(model(name), narrow(a_device(), **ROW), kind, (1, 7), 3)


@pytest.mark.parametrize(
    "name",
    [
        "llama biases/f32",
        *(pytest.param(f"{n}/f32", marks=pytest.mark.long) for n in ARCHITECTURES),
    ],
)
def test_a_small_largest_allocation(name: str) -> None:
    """The device's own check of every allocation is in force."""
    device = narrow(a_device(), **SMALL_ALLOC)
    check(model(name), device, "buffer", (1, 7), 3)
    with clk_engine.engine(model(name), device) as engine:
        assert engine.runner.context.memory.largest == SMALL_ALLOC["max_alloc"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["buffer", "image"])
@pytest.mark.parametrize("source", ["pip", "debian"])
@pytest.mark.parametrize("name", ["qwen1.5/f16", "llama3/q4_k"])
def test_a_long_prompt(name: str, source: str, kind: str) -> None:
    check(model(name), narrow(find_pocl(source), **ROW), kind, (1, 7, 300), 8)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of Qwen1.5-0.5B's shape; its embedding, which is its head, takes 311 MB."""
    return write_model(
        tmp_path_factory.mktemp("qwen") / "qwen.gguf",
        architecture="qwen2", dtype=clk_engine.mixture("q4_0", token_embd="f16"),
        layers=2, hidden=1024, intermediate=2816, heads=16, kv_heads=16, head_dim=64, vocab=151936,
        context=32768, rope_theta=1e6, metadata={"qwen2.attention.layer_norm_rms_epsilon": 1e-6},
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "count"), [("buffer", 3), ("image", 5)])
def test_a_large_vocabulary(qwen: Path, kind: str, count: int) -> None:
    """On a device with the largest allocation that OpenCL promises, and narrow images."""
    limits: dict[str, Any] = {"max_alloc": 128 << 20}
    if kind == "image":
        limits |= {"image2d_max_width": 2048, "image2d_max_height": 4096}
    want = clk_logits.reference(qwen, "f32", (1, 40), 4)
    device = narrow(a_device(), **limits)
    with clk_engine.engine(qwen, device, kv_dtype="f32", variant=[kind]) as engine:
        steps = [*engine.runner.graph.body(1, 128), *engine.runner.graph.head()]
        assert sum("of" in dict(s.workload.items) for s in steps) == 2 * count
        found = {
            where: clk_engine.relative_error(got, expected)
            for where, got, expected in clk_logits.run(engine, want)
        }
        largest = max(t.nbytes for t in engine.runner.planner.resident._parts.values())
        assert 50 << 20 < largest <= 128 << 20
    clk_logits.check(found, EXPECTED["f32"])


@pytest.mark.long
@pytest.mark.parametrize("type", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", ["buffer", "image"])
def test_little_local_memory(qwen: Path, kind: str, type: str) -> None:
    """48 KiB are enforced at every build and launch; what a GPU is given goes through them."""
    want = clk_logits.reference(qwen, "f32", (1, 40), 4)
    device, limits = narrow(find_pocl("debian"), type=type), ["local-48k"]
    with clk_engine.engine(qwen, device, kv_dtype="f32", variant=[kind], limits=limits) as engine:
        assert engine.device.local_memory == 48 << 10
        found = {
            where: clk_engine.relative_error(got, expected)
            for where, got, expected in clk_logits.run(engine, want)
        }
        used = {
            SPECS[workload.op].local_memory(workload, choice.config)
            for workload, choice in engine.runner.planner.choices.items()
        }
    assert max(used) <= 48 << 10 and (type == "cpu" or max(used) > 8 << 10)
    clk_logits.check(found, EXPECTED["f32"])


def test_not_even_a_few_rows_fit() -> None:
    """It is not split to no avail: what does not fit is named, with both figures."""
    device = narrow(a_device(), max_alloc=3000)
    with (
        pytest.raises(UnsupportedOperation, match=r"w\.q \d+ > 3000 bytes \(largest allocation\)"),
        clk_engine.engine(device=device),
    ):
        pass


# -- tuning ----------------------------------------------------------------------------------------


def test_a_split_model_is_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its embedding, of which each image holds a half; the rest of the model fits."""
    device = narrow(a_device(), **ROW)
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with Store.open(cache) as store:
        with_roofs(store, device.info.driver_key)
    monkeypatch.setattr(TuningJob, "_speeds", lambda *_: {})  # it would compile the whole model
    done = clkiln.tune(
        clk_engine.small_model(), device, cache, kernels=["embedding"], level="fast", budget=2.0
    )
    assert done.trials > 0
    with clk_engine.engine(device=device, cache=cache) as engine:
        choices = engine.runner.planner.choices
        tuned = [w for w, choice in choices.items() if choice.origin == "tuned"]
        assert tuned
        assert all(w.op == "embedding" and w.size("of") == 515 for w in tuned)
        engine.runner.feed([5, 500])
        logits = engine.runner.logits()
    expected = clk_logits.weights(clk_engine.small_model())
    expected.reset()
    assert clk_engine.relative_error(logits, expected.extend([5, 500])) < EXPECTED["f32"]


# -- the KV cache ----------------------------------------------------------------------------------


def test_a_cache_as_large_as_an_allocation() -> None:
    """The context is 768 positions of a layer's keys and no more, and all of them work."""
    shape = {"context": 4096, "layers": 1, "kv_heads": 6}
    path = clk_engine.variation(clk_engine.small_model().parent / "alloc.gguf", **shape)
    device = narrow(a_device(), max_alloc=768 * 6 * 16 * 4)
    prompt = clk_engine.prompt(768, 515)
    expected = Decoder64(path).extend(prompt)
    with clk_engine.engine(path, device) as engine:
        runner = engine.runner
        assert runner.limit == 768
        with pytest.raises(ContextLengthError):
            runner.feed([5] * 769)
        runner.feed(prompt)
        assert clk_engine.relative_error(runner.logits(), expected) < EXPECTED["f32"]


def test_why_a_cache_does_not_fit_is_said() -> None:
    with clk_engine.engine() as engine:
        memory = engine.runner.context.memory
        memory.largest = 700 * 2 * 16 * 4
        with pytest.raises(OutOfDeviceMemory) as caught:
            engine.runner.feed([5] * 900)
        assert re.search(
            r"KV cache of 900 positions .*: 700 do \(its largest allocation is 87\.5 KiB, and "
            r"blk\.0\.k_cache of 701 takes 87\.6 KiB: a shorter text or --kv-dtype f16 may fit\)",
            str(caught.value),
        )
        memory.limit = memory.used
        with pytest.raises(OutOfDeviceMemory, match=rf": {BLOCK} do \(.* are in use: a shorter"):
            engine.runner.feed([5] * 900)
