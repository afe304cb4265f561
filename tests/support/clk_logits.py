"""An engine's logits against the decoder in float64, at every position that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import clk_engine
from clk_decoder64 import Array, Decoder64
from clkiln.inference.engine import Engine
from clkiln.runtime.device import Device

#: What the kernels have to do, so that a fault can't hide in the promise. A float16 cache is held
#: against a reference that rounds keys and values in the same way; a value on the brink between
#: two float16 numbers may then still go the other way.
EXPECTED = {"f32": 2e-5, "f16": 5e-4}
PROMPTS = (1, 7, 300)
DECODED = 8


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
    device: Device,
    kv: str,
    kind: str | None,
    prompts: tuple[int, ...] = PROMPTS,
    decoded: int = DECODED,
    **options: Any,
) -> dict[str, float]:
    """Feed each prompt, decode behind the last one, and compare at every position."""
    want = reference(path, kv, prompts, decoded)
    variant = [kind] if kind else []
    with clk_engine.engine(path, device, kv_dtype=kv, variant=variant, **options) as engine:
        return {
            where: clk_engine.relative_error(got, expected)
            for where, got, expected in run(engine, want)
        }


def free_errors(
    path: Path, device: Device, kind: str, cache: Path, **options: Any
) -> dict[str, float]:
    """As :func:`errors`; of kind ``free`` every operation runs in any form, chosen by chance.

    As if a tuner had found all sorts of things best: buffers, texels and images side by side.
    """
    if kind != "free":
        return errors(path, device, "f32", kind, cache=cache, **options)
    limits = options.get("limits", [])
    with clk_engine.engine(path, device, cache=cache, limits=limits) as engine:
        clk_engine.play_lottery(engine, seed=len(path.name) + len(limits))
    return errors(path, device, "f32", None, cache=cache, **options)


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
