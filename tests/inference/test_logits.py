"""The engine's logits against a decoder in float64: the promise that all the rest stands on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

import clk_engine
from clk_decoder64 import Decoder64
from clk_pocl import find_pocl
from clkiln.inference.engine import Engine

#: Largest relative L2 error, stated in the documentation. Rounding keys and values to float16
#: takes most of it: with a float32 cache a thousandth of it has to do.
BOUND = {"f16": 1e-3, "f32": 1e-5}
PROMPTS = (1, 7, 64, 300)
DECODED = 32
COMBINATIONS = [(kv, kind) for kv in ("f16", "f32") for kind in ("buffer", "image")]


@dataclass(frozen=True)
class Expected:
    """The reference's logits after each prompt, then behind the last while decoding greedily."""

    prompts: dict[int, object]
    tokens: list[int]
    decoded: list[object]


@lru_cache(maxsize=2)
def expected(path: Path, prompts: tuple[int, ...], decoded: int) -> Expected:
    decoder = Decoder64(path)
    after, tokens, steps = {}, [], []
    for length in prompts:
        decoder.reset()
        after[length] = decoder.extend(clk_engine.prompt(length, decoder.vocab))
    logits = after[prompts[-1]]
    for _ in range(decoded):
        tokens.append(int(logits.argmax()))
        logits = decoder.extend([tokens[-1]])
        steps.append(logits)
    return Expected(after, tokens, steps)


def check(
    path: Path,
    source: str,
    kv: str,
    kind: str,
    prompts: tuple[int, ...] = PROMPTS,
    decoded: int = DECODED,
) -> None:
    """Feed each prompt, decode behind the last one, and compare at every position."""
    want = expected(path, prompts, decoded)
    errors = {}
    with clk_engine.engine(path, find_pocl(source), kv_dtype=kv, variant=[kind]) as engine:
        vocab = engine.config.vocab
        for length in prompts:
            engine.runner.reset()
            engine.runner.feed(clk_engine.prompt(length, vocab))
            errors[f"prompt of {length}"] = error(engine, want.prompts[length])
        for step, (token, logits) in enumerate(zip(want.tokens, want.decoded, strict=True)):
            feed(engine, token)
            errors[f"decoded {step}"] = error(engine, logits)
        engine.runner.loader.keep_fresh()
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= BOUND[kv], f"{worst}: relative L2 error {errors[worst]:.2e}"


def feed(engine: Engine, token: int) -> None:
    """Go on with ``token``: by the device's own pick where that is the same, as generation does."""
    if engine.runner.pick(0) == token:
        engine.runner.feed_pick()
    else:
        engine.runner.feed([token])


def error(engine: Engine, want: object) -> float:
    logits = engine.runner.logits()
    assert engine.runner.pick(0) == logits.argmax()
    return clk_engine.relative_error(logits, want)


def some_and_rest() -> list[object]:
    """Each model in both variants with pip's PoCL, and in one with Debian's; the rest is long."""
    cases = []
    for index, name in enumerate(clk_engine.MODELS):
        for source in ("pip", "debian"):
            for place, (kv, kind) in enumerate(COMBINATIONS):
                # f16 buffer with f32 image, or f32 buffer with f16 image.
                quick = (place in (0, 3)) == (index % 2 == 0)
                if source == "debian":
                    quick = place == index % 4
                marks = () if quick else pytest.mark.long
                cases.append(pytest.param(name, source, kv, kind, marks=marks))
    return cases


@pytest.mark.parametrize(("name", "source", "kv", "kind"), some_and_rest())
def test_random_models(name: str, source: str, kv: str, kind: str) -> None:
    check(clk_engine.model(name), source, kv, kind)


@pytest.mark.parametrize("source", ["pip", "debian"])
def test_the_real_model(model_file: Path, source: str) -> None:
    check(model_file, source, "f16", "buffer", prompts=(7, 64), decoded=8)


@pytest.mark.long
@pytest.mark.parametrize(("kv", "kind"), COMBINATIONS)
@pytest.mark.parametrize("source", ["pip", "debian"])
def test_the_real_model_in_full(model_file: Path, source: str, kv: str, kind: str) -> None:
    check(model_file, source, kv, kind)
