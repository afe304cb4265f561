"""The engine's logits against a decoder in float64: the promise that all the rest stands on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import clk_engine
from clk_decoder64 import Array, Decoder64
from clk_pocl import find_pocl
from clkiln.inference.config import SUPPORTED_TYPES
from clkiln.inference.engine import Engine
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.kv_cache import DEFAULT_KV

#: The promise: relative L2 error of the logits at any position.
PROMISED = 1e-3
#: What the kernels have to do, so that a fault can't hide in the promise. A float16 cache is held
#: against a reference that rounds keys and values in the same way; a value on the brink between
#: two float16 numbers may then still go the other way.
EXPECTED = {"f32": 2e-5, "f16": 5e-4}
PROMPTS = (1, 7, 300)
DECODED = 8
#: As in no file: it divides by nothing.
VOCAB = 32003
COMBINATIONS = [(kv, kind) for kv in ("f16", "f32") for kind in ("buffer", "image")]


class Rounding(Decoder64):
    """The reference with a float16 KV cache."""

    def kept(self, x: Array) -> Array:
        return x.astype(np.float16).astype(np.float64)


@dataclass(frozen=True)
class Reference:
    """Logits after each prompt, and after each token that is decoded behind the last of them."""

    prompts: dict[int, Array]
    tokens: list[int]
    decoded: list[Array]


@lru_cache(maxsize=2)
def weights(path: Path) -> Decoder64:
    return Decoder64(path)


@lru_cache(maxsize=4)
def reference(path: Path, kv: str, prompts: tuple[int, ...], decoded: int) -> Reference:
    decoder = Rounding.__new__(Rounding) if kv == "f16" else Decoder64.__new__(Decoder64)
    decoder.__dict__.update(vars(weights(path)))  # a gigabyte for the real model: shared
    after: dict[int, Array] = {}
    for length in prompts:
        decoder.reset()
        after[length] = decoder.extend(clk_engine.prompt(length, decoder.vocab))
    tokens, steps, logits = [], [], after[prompts[-1]]
    for _ in range(decoded):
        tokens.append(int(logits.argmax()))
        logits = decoder.extend([tokens[-1]])
        steps.append(logits)
    return Reference(after, tokens, steps)


def errors(
    path: Path,
    source: str,
    kv: str,
    kind: str,
    prompts: tuple[int, ...] = PROMPTS,
    decoded: int = DECODED,
) -> dict[str, float]:
    """Feed each prompt, decode behind the last one, and compare at every position."""
    want = reference(path, kv, prompts, decoded)
    with clk_engine.engine(path, find_pocl(source), kv_dtype=kv, variant=[kind]) as engine:
        return {
            where: clk_engine.relative_error(got, expected)
            for where, got, expected in run(engine, want)
        }


def run(engine: Engine, want: Reference) -> Iterator[tuple[str, NDArray[np.float32], Array]]:
    runner = engine.runner
    for length, expected in want.prompts.items():
        runner.reset()
        runner.feed(clk_engine.prompt(length, engine.config.vocab))
        yield f"prompt of {length}", logits(engine), expected
    for step, (token, expected) in enumerate(zip(want.tokens, want.decoded, strict=True)):
        # By the device's own pick where that is the same, as generation does.
        if runner.pick(step) == token:
            runner.feed_pick()
        else:
            runner.feed([token])
        yield f"decoded token {step}", logits(engine), expected


def logits(engine: Engine) -> NDArray[np.float32]:
    found = engine.runner.logits()
    assert engine.runner.pick(0) == found.argmax()
    return found


def check(found: dict[str, float], bound: float) -> None:
    worst = max(found, key=found.__getitem__)
    assert found[worst] <= bound, f"{worst}: relative L2 error {found[worst]:.2e}"


def some_and_rest() -> Iterator[object]:
    """Each model in one combination, on both devices in turn; all others are long.

    So is each architecture in each format.
    """
    others = [f"{a}/{b}" for a in clk_engine.ARCHITECTURES for b in clk_engine.FORMATS]
    names = dict.fromkeys([*clk_engine.MODELS, *others])
    for index, name in enumerate(names):
        for place, (source, (kv, kind)) in enumerate(product(("pip", "debian"), COMBINATIONS)):
            quick = place == (3 * index) % 8
            if quick or name in clk_engine.MODELS:
                known = quick and name in clk_engine.MODELS
                marks = () if known else pytest.mark.long
                yield pytest.param(name, source, kv, kind, marks=marks)


@pytest.mark.parametrize(("name", "source", "kv", "kind"), list(some_and_rest()))
def test_random_models(name: str, source: str, kv: str, kind: str) -> None:
    check(errors(clk_engine.model(name, VOCAB), source, kv, kind), EXPECTED[kv])


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
    check(errors(model_file, "pip", DEFAULT_KV, "buffer", (7, 64), 8), EXPECTED[DEFAULT_KV])


@pytest.mark.long
@pytest.mark.parametrize("source", ["pip", "debian"])
def test_a_real_mixture_of_formats(source: str) -> None:
    """Qwen2.5-Coder-0.5B in Q4_K_M; in float64 it takes 6 GB."""
    path = os.environ.get("CLKILN_TEST_QWEN")
    if not path:
        pytest.skip("needs Qwen2.5-Coder: set CLKILN_TEST_QWEN to its GGUF file")
    found = errors(Path(path), source, DEFAULT_KV, "buffer", (1, 7, 64), 8)
    check(found, EXPECTED[DEFAULT_KV])


@pytest.mark.long
@pytest.mark.parametrize(("kv", "kind"), COMBINATIONS)
@pytest.mark.parametrize("source", ["pip", "debian"])
def test_the_real_model_in_full(model_file: Path, source: str, kv: str, kind: str) -> None:
    check(errors(model_file, source, kv, kind, (1, 7, 64, 300), 32), EXPECTED[kv])
