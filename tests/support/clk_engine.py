"""Engines on small random models: the models, their variations, and tuning played by hand.

Engines that name no cache file share the device's own in the session's folder, so each program is
compiled once in a test run. A test that plants rows takes a copy (:func:`own_cache`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from clk_models import write_model
from clk_pocl import find_pocl
from clkiln.cache.paths import cache_file
from clkiln.cache.rows import BestRow
from clkiln.cache.store import Store
from clkiln.inference.engine import Engine
from clkiln.kernels import SPECS
from clkiln.runtime.device import Device

#: The default model of these tests: few shapes, so few programs, and a context of two buckets.
SMALL: dict[str, Any] = {"dtype": "q8_0", "context": 1024}


def mixed(name: str) -> str:
    """Every dtype in one model; q, k and v differ, so that they are widened to be stacked."""
    kinds = {"attn_q": "q4_0", "attn_k": "q8_0", "attn_v": "f16", "ffn_down": "q4_1"}
    kinds |= {"attn_output": "f32", "output": "q8_0", "token_embd": "f16"}
    return kinds.get(name.split(".")[-2], "q4_0")


#: Both architectures, every dtype, tied and not, biases, odd sizes. Quantised columns come in
#: blocks of 32; the others divide by as little as they can.
MODELS: dict[str, dict[str, Any]] = {
    "llama q4_0": {"dtype": "q4_0"},
    "llama q8_0 untied": {"dtype": "q8_0", "tied": False, "kv_heads": 6},
    "llama f32 odd": {
        "dtype": "f32", "hidden": 70, "intermediate": 101, "heads": 5, "kv_heads": 1,
        "head_dim": 14, "rope_factors": True,
    },
    "qwen2 q4_1": {
        "architecture": "qwen2", "dtype": "q4_1", "heads": 4, "kv_heads": 1, "head_dim": 48,
        "rope_theta": 1e6,
    },
    "qwen2 f16 odd": {
        "architecture": "qwen2", "dtype": "f16", "tied": False, "hidden": 52,
        "intermediate": 77, "heads": 3, "kv_heads": 3, "head_dim": 22,
    },
    "qwen2 mixed": {"architecture": "qwen2", "dtype": mixed, "tied": False, "layers": 1},
}  # fmt: skip


@cache
def model(name: str) -> Path:
    """One of :data:`MODELS`, written once."""
    return _write(name, {"context": 512, **MODELS[name]})


@cache
def small_model() -> Path:
    return _write("small", SMALL)


def variation(path: Path, **changes: Any) -> Path:
    """The small model with other metadata or shape, but the same random numbers."""
    return write_model(path, **{**SMALL, **changes})


def with_tensor(path: Path, name: str, change: Callable[[np.ndarray], None], **shape: Any) -> Path:
    """The small model with the stored array of tensor ``name`` changed in place."""
    variation(path, **shape)
    reader = gguf.GGUFReader(path, "r+")
    change(next(tensor.data for tensor in reader.tensors if tensor.name == name))
    reader.data.flush()
    return path


def _write(name: str, shape: Mapping[str, Any]) -> Path:
    # Beside the session's other folders, with which it goes.
    folder = Path(os.environ["POCL_CACHE_DIR"]).parent / "models"
    folder.mkdir(exist_ok=True)
    return write_model(folder / f"{name.replace(' ', '-')}.gguf", **shape)


def a_device() -> Device:
    """The device of tests that need any: PoCL from pip, which the test environment has."""
    return find_pocl("pip")


@contextmanager
def engine(
    path: Path | None = None, device: Device | None = None, **options: Any
) -> Iterator[Engine]:
    """An engine whose warnings go nowhere."""
    options.setdefault("warn", lambda text: None)
    with Engine.load(path or small_model(), device or a_device(), **options) as loaded:
        yield loaded


def warm(engine: Engine, length: int = 40) -> None:
    """Run prompts of every bucket up to ``length``, and keep what was compiled for them."""
    for tokens in {1, 2, length}:
        engine.runner.reset()
        engine.runner.feed([5] * tokens)
    engine.runner.loader.keep_fresh()


def own_cache(path: Path, device: Device | None = None) -> Path:
    """A copy at ``path`` of the session's cache file of a device, with its programs."""
    info = (device or a_device()).info
    shared = cache_file(info.name, info.platform)
    if not shared.exists():
        with engine(device=device) as loaded:
            warm(loaded)
    shutil.copyfile(shared, path)
    return path


def play_tuning(loaded: Engine, *, driver: str | None = None) -> list[BestRow]:
    """Keep what ``loaded`` runs as if it had been tuned, under its own driver key or another."""
    rows = [
        BestRow(
            workload=str(workload),
            driver=driver or loaded.device.driver_key,
            digest=SPECS[workload.op].digest(),
            config=str(choice.config),
            time=1e-3,
            layout=SPECS[workload.op].layout(workload, choice.config),
        )
        for workload, choice in loaded.runner.planner.choices.items()
    ]
    plant(loaded.store, rows)
    return rows


def plant(store: Store, rows: list[BestRow]) -> None:
    for row in rows:
        store.set_best(row)


def prompt(length: int, vocab: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(seed + length).integers(0, vocab, length).tolist()


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """``||got - want|| / ||want||``."""
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))
