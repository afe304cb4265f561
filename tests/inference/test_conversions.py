"""Where a plan converts activations into images: no reader sees a stale one, none is made twice.

And whole engines: every linear layer reading its input in one form, and in all of them by turns.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clk_engine
import clk_logits
from clk_cache import quick, some_best
from clk_pocl import a_device, find_intel, find_pocl
from clk_run import Limits
from clkiln.cache.rows import BestRow
from clkiln.cache.store import Store
from clkiln.errors import CacheMissError, OutOfDeviceMemory
from clkiln.inference.buckets import TOKENS
from clkiln.inference.choose import Choice
from clkiln.inference.config import ModelConfig
from clkiln.inference.conversions import Conversion, image_of, with_conversions
from clkiln.inference.engine import Engine
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.graph import Graph, Step
from clkiln.inference.kv_cache import DEFAULT_KV
from clkiln.inference.weights import Weights
from clkiln.kernels import SPECS
from clkiln.kernels.images import CONVERTED
from clkiln.kernels.types import Config, Workload
from clkiln.runtime.device import Device

LIMITS = Limits(
    "cpu", 2, 1 << 20, 4096, (4096,) * 3, features=frozenset({"images", "image_buffers"})
)

# -- where conversions go --------------------------------------------------------------------------

TENSORS = ("a", "b", "c")
PLAIN = Workload.parse("gemv bias=no fuse=none k=64 n=64 w=f32")
CONVERTING, ADDING, NORM = (
    PLAIN.replace(w="f16"),
    PLAIN.replace(w="bf16", fuse="add"),
    Workload.parse("rmsnorm d=64 eps=1e-05 m=1"),
)


def in_form(workload: Workload, form: int) -> Choice:
    config = SPECS[workload.op].safe_of_kind(workload, LIMITS, "image")
    assert config is not None
    return Choice(workload, with_form(workload, config, form), "tuned")


def with_form(workload: Workload, config: Config, form: int) -> Config:
    """``config`` reading x in a form, with as little else changed as that asks."""
    if form:
        config = config.replace(**({"U": 4} if workload.op == "gemv" else {"TM": 8, "TN": 1}))
    return config.replace(XM=form)


CHOICES = {
    PLAIN: in_form(PLAIN, 0),
    CONVERTING: in_form(CONVERTING, CONVERTED),
    ADDING: in_form(ADDING, CONVERTED),
    NORM: Choice(NORM, SPECS["rmsnorm"].safe(NORM, LIMITS), "tuned"),
}
steps = st.lists(
    st.builds(
        lambda workload, x, y: Step(workload, {"x": x, "y": y, "w": "w"}),
        st.sampled_from(list(CHOICES)),
        st.sampled_from(TENSORS),
        st.sampled_from(TENSORS),
    ),
    max_size=12,
)


@quick
@given(steps)
def test_images_are_fresh_and_made_once(given_steps: list[Step]) -> None:
    """Played through with a version for each content of a tensor."""
    found = with_conversions(given_steps, CHOICES)
    version = dict.fromkeys(TENSORS, 0)
    images: dict[str, int] = {}
    plain = []
    for step in found:
        if isinstance(step, Conversion):
            assert images.get(step.image) != version[step.source], "made for nothing"
            assert step.workload == Workload.parse("to_image k=64 m=1")
            images[step.image] = version[step.source]
            continue
        original = given_steps[len(plain)]
        plain.append(step)
        source = original.tensors["x"]
        if step.workload in (CONVERTING, ADDING):
            assert step.tensors["x"] == image_of(source)
            assert images[image_of(source)] == version[source], "stale"
        else:
            assert step.tensors["x"] == source
        assert (step.workload, step.tensors["y"]) == (original.workload, original.tensors["y"])
        version[step.tensors["y"]] += 1
    assert len(plain) == len(given_steps)


def test_a_conversion_stands_right_in_front_of_its_first_reader() -> None:
    """Two pieces of a matrix read one image; the write behind them makes it stale."""
    reads = Step(CONVERTING, {"x": "a", "y": "b", "w": "w"})
    writes = Step(ADDING, {"x": "b", "y": "a", "w": "w"})
    found = with_conversions([reads, reads, writes, reads], CHOICES)
    of_a, of_b = (
        Conversion(Workload.parse("to_image k=64 m=1"), {"x": name, "y": f"{name} image"})
        for name in "ab"
    )
    names = [of_a, CONVERTING, CONVERTING, of_b, ADDING, of_a, CONVERTING]
    assert [s if isinstance(s, Conversion) else s.workload for s in found] == names


# -- engines ---------------------------------------------------------------------------------------

#: In all forms by turns.
MIXED = "mixed"
FORMS = (0, 1, 2, MIXED)


def rows(path: Path, device: Device, form: int | str) -> list[BestRow]:
    """Linear layers in images, their inputs in ``form``, and the conversions, as if tuned."""
    file = GGUFFile.open(path)
    config = ModelConfig.from_gguf(file)
    graph = Graph(config, Weights(file, config), DEFAULT_KV, device.info)
    every = [*graph.body(1, 128), *graph.head(), *(s for m in TOKENS for s in graph.body(m, 128))]
    found: dict[Workload, Config] = {}
    for workload in dict.fromkeys(step.workload for step in every):
        if workload.op not in ("gemv", "gemm"):
            continue
        spec = SPECS[workload.op]
        safe = spec.safe_of_kind(workload, device.info, "image")
        assert safe is not None
        own = len(found) % 3 if form == MIXED else int(form)
        config_of = with_form(workload, safe, own)
        assert spec.check(workload, config_of, device.info) is None
        found[workload] = config_of
        for made in spec.conversions(workload, config_of).values():
            found[made] = SPECS[made.op].safe(made, device.info)
    return [
        some_best(
            workload=str(workload), driver=device.info.driver_key, config=str(config),
            digest=SPECS[workload.op].digest(), layout=SPECS[workload.op].layout(workload, config),
        )
        for workload, config in found.items()
    ]  # fmt: skip


def engine_of(
    folder: Path, path: Path, device: Device, form: int | str, **options: object
) -> tuple[Path, Callable[[], Engine]]:
    cache = folder / "forms.sqlite"
    if path == clk_engine.small_model():
        clk_engine.own_cache(cache, device)
    with Store.open(cache) as store:
        clk_engine.plant(store, rows(path, device, form))
    return cache, lambda: Engine.load(
        path, device, cache, variant=["image"], warn=lambda text: None, **options
    )  # type: ignore[arg-type]


#: All forms by turns in a model of odd widths; the rest is long.
USUAL = (("qwen3/f32", "debian", MIXED),)


def some_and_rest() -> list[object]:
    names = ("qwen3/f32", "llama2/q4_0", "qwen2.5/q4_k_m")
    return [
        pytest.param(*case, marks=() if case in USUAL else pytest.mark.long)
        for case in product(names, ("pip", "debian", "intel"), FORMS)
    ]


@pytest.mark.parametrize(("name", "source", "form"), some_and_rest())
def test_logits(tmp_path: Path, name: str, source: str, form: int | str) -> None:
    """Prompts of several lengths, so that images are larger than what is in them."""
    path = clk_engine.model(name)
    device = find_intel() if source == "intel" else find_pocl(source)
    prompts = (1, 20, 7) if (name, source, form) in USUAL else (1, 20, 300, 7)
    want = clk_logits.reference(path, DEFAULT_KV, prompts, 3)
    _, load = engine_of(tmp_path, path, device, form)
    with load() as engine:
        found = {
            where: clk_engine.relative_error(got, expected)
            for where, got, expected in clk_logits.run(engine, want)
        }
        clk_logits.check(found, clk_logits.EXPECTED[DEFAULT_KV])
        chosen = engine.runner.planner.choices
        linear = {c.config["XM"] for w, c in chosen.items() if w.op in ("gemv", "gemm")}
        assert linear == ({0, 1, 2} if form == MIXED else {form})
        conversions = [w for w in chosen if w.op == "to_image"]
        assert bool(conversions) == (CONVERTED in linear)
        assert {chosen[w].origin for w in conversions} <= {"tuned"}


def test_images_live_as_long_as_their_tensors(tmp_path: Path) -> None:
    """Larger activations take their place; the budget counts every image once."""
    device = a_device()
    _, load = engine_of(tmp_path, clk_engine.small_model(), device, CONVERTED)
    with load() as engine:
        runner = engine.runner
        images, memory = {}, runner.context.memory
        for tokens in (1, 32, 2, 1):
            runner.reset()
            runner.feed([5] * tokens)
            tensors = runner.planner.tensors
            images = {name: t for name, t in tensors.items() if name.endswith(" image")}
            assert {name.removesuffix(" image") for name in images} <= {"x", "h", "attention", "ff"}
            for name, image in images.items():
                held = tensors[name.removesuffix(" image")]
                assert image.memory == "image2d" and image.handle is not None
                assert image.shape == (held.shape[0], -(-held.shape[1] // 4), 4)
            assert {t.shape[0] for t in images.values()} == {runner._rows}
        assert len(images) == 4
        before, freed = memory.used, sum(image.nbytes for image in images.values())
        runner._plans.clear()
        runner._activations(runner._rows)
        assert memory.used == before - freed
        assert all(image.handle is None for image in images.values())
        assert not any(name.endswith(" image") for name in runner.planner.tensors)
        assert not any(" image" in bound for key in runner.planner._launches for _, bound in key[1])


def test_an_image_that_does_not_fit_is_named(tmp_path: Path) -> None:
    _, load = engine_of(tmp_path, clk_engine.small_model(), a_device(), CONVERTED)
    with load() as engine:
        runner = engine.runner
        runner.feed([5])
        limit, runner.context.memory.limit = runner.context.memory.limit, 0
        runner._plans.clear()
        runner.planner.replace("x", runner.planner.tensors.pop("x"))
        with pytest.raises(OutOfDeviceMemory, match="x image"):
            runner.feed([5])
        runner.context.memory.limit = limit
        runner.reset()
        runner.feed([5])
        assert np.isfinite(runner.logits()).all()


def test_a_conversion_that_was_not_tuned_is_a_miss(tmp_path: Path) -> None:
    """The file knows how to read the image, and nothing of how it is made."""
    path, device = clk_engine.small_model(), a_device()
    cache, load = engine_of(tmp_path, path, device, CONVERTED)
    with load() as engine:
        clk_engine.warm(engine)
        clk_engine.play_tuning(engine)
    Engine.load(path, device, cache, require_cache=True, variant=["image"]).close()
    with Store.open(cache) as store:
        for row in store.best_rows():
            if row.workload.startswith("to_image"):
                store.set_best(some_best(**{**vars(row), "config": "{"}))
    with pytest.raises(CacheMissError, match="to_image"):
        Engine.load(path, device, cache, require_cache=True, variant=["image"])
