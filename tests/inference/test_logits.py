"""The engine's logits against a decoder in float64: the promise that all the rest stands on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

import clk_engine
from clk_given import given
from clk_logits import EXPECTED, PROMPTS, check, errors, reference
from clk_pocl import find_pocl
from clkiln.inference.config import SUPPORTED_TYPES
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.kv_cache import DEFAULT_KV

#: The promise: relative L2 error of the logits at any position.
PROMISED = 1e-3
#: As in no file: it divides by nothing.
VOCAB = 32003
#: Between them all that architectures differ in; kernels are tested in every format.
QUICK = ("llama3/q8_0", "llama biases/mixed", "smollm2/q4_1", "qwen2.5 yarn/iq4_nl", "qwen3/f32")
COMBINATIONS = [(kv, kind) for kv in ("f16", "f32") for kind in ("buffer", "image")]


def some_and_rest() -> Iterator[object]:
    """Models in one combination each, on both devices in turn; all others are long.

    So is each architecture in each format.
    """
    others = [f"{a}/{b}" for a in clk_engine.ARCHITECTURES for b in clk_engine.FORMATS]
    names = dict.fromkeys([*clk_engine.MODELS, *others])
    for index, name in enumerate(names):
        for place, (source, (kv, kind)) in enumerate(product(("pip", "debian"), COMBINATIONS)):
            quick = place == (3 * index) % 8
            if quick or name in clk_engine.MODELS:
                known = quick and name in QUICK
                marks = () if known else pytest.mark.long
                yield pytest.param(name, source, kv, kind, marks=marks)


@pytest.mark.parametrize(("name", "source", "kv", "kind"), list(some_and_rest()))
def test_random_models(name: str, source: str, kv: str, kind: str) -> None:
    check(errors(clk_engine.model(name, VOCAB), find_pocl(source), kv, kind), EXPECTED[kv])


def test_every_architecture_and_format_is_compared() -> None:
    names = [name.partition("/")[0] for name in clk_engine.MODELS]
    assert names == list(clk_engine.ARCHITECTURES)
    files = [GGUFFile.open(clk_engine.model(name)) for name in clk_engine.MODELS]
    used = {info.dtype for file in files for info in file.tensors.values() if len(info.shape) == 2}
    assert used == set(SUPPORTED_TYPES)
    whole = {name for name, kind in clk_engine.FORMATS.items() if isinstance(kind, str)}
    assert whole == set(SUPPORTED_TYPES), "each can be all of a model, in the long tests"


@pytest.mark.parametrize("name", clk_engine.MODELS)
def test_a_float16_cache_costs_less_than_what_is_promised(name: str) -> None:
    path = clk_engine.model(name)
    exact, rounded = (reference(path, kv, PROMPTS, 0) for kv in ("f32", "f16"))
    for length, expected in exact.prompts.items():
        assert clk_engine.relative_error(rounded.prompts[length], expected) <= PROMISED


def test_the_real_model(model_file: Path) -> None:
    """As it runs by default, where a float32 cache keeps far below the 1e-3 promised."""
    check(
        errors(model_file, find_pocl("pip"), DEFAULT_KV, "buffer", (7, 64), 8), EXPECTED[DEFAULT_KV]
    )


@pytest.mark.long
@pytest.mark.parametrize("source", ["pip", "debian"])
def test_a_real_mixture_of_formats(source: str) -> None:
    """Qwen2.5-Coder-0.5B in Q4_K_M; in float64 it takes 6 GB."""
    path = given("CLKILN_TEST_QWEN", "Qwen2.5-Coder-0.5B as a GGUF file")
    found = errors(path, find_pocl(source), DEFAULT_KV, "buffer", (1, 7, 64), 8)
    check(found, EXPECTED[DEFAULT_KV])


@pytest.mark.long
@pytest.mark.parametrize(("kv", "kind"), COMBINATIONS)
@pytest.mark.parametrize("source", ["pip", "debian"])
def test_the_real_model_in_full(model_file: Path, source: str, kv: str, kind: str) -> None:
    check(errors(model_file, find_pocl(source), kv, kind, (1, 7, 64, 300), 32), EXPECTED[kv])
