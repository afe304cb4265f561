"""Engines on small random models: the models, their variations, and tuning played by hand.

Engines that name no cache file share the device's own in the session's folder, so each program is
compiled once in a test run. A test that plants rows takes a copy (:func:`own_cache`).
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from clk_models import write_model
from clk_pocl import a_device
from clkiln.cache.paths import cache_file
from clkiln.cache.rows import BestRow
from clkiln.cache.store import Store
from clkiln.inference.engine import Engine
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.runtime.device import Device

#: The default model of these tests: few shapes, so few programs, and a context of two buckets.
SMALL: dict[str, Any] = {"dtype": "q8_0", "context": 1024}


#: What the architectures have of their own. Queries share keys and values in groups of different
#: sizes, which don't divide the layers' widths evenly.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama2": {"tied": False, "heads": 6, "kv_heads": 6},
    "llama3": {
        "tied": False, "heads": 6, "kv_heads": 2, "rope_theta": 5e5, "rope_factors": "llama3",
    },
    "llama biases": {
        "heads": 5, "kv_heads": 1, "bias": True, "output_bias": True, "ffn_bias": True,
    },
    "smollm2": {"heads": 3, "kv_heads": 1, "rope_theta": 1e5},
    "qwen1.5": {"architecture": "qwen2", "tied": False, "heads": 3, "kv_heads": 3},
    "qwen2": {
        "architecture": "qwen2", "tied": False, "heads": 7, "kv_heads": 1, "rope_theta": 1e6,
    },
    "qwen2.5": {"architecture": "qwen2", "heads": 6, "kv_heads": 2, "rope_theta": 1e6},
    "qwen2.5 yarn": {
        "architecture": "qwen2", "heads": 4, "kv_heads": 2, "rope_theta": 1e6,
        "metadata": {
            "qwen2.rope.scaling.type": "yarn",
            "qwen2.rope.scaling.factor": 4.0,
            "qwen2.rope.scaling.original_context_length": 128,
        },
    },
    "qwen3": {"architecture": "qwen3", "heads": 6, "kv_heads": 2, "rope_theta": 1e6},
}  # fmt: skip


def mixture(default: str, **kinds: str) -> Callable[[str], str]:
    """Types by the name of a tensor without its layer, or with it: ``{"0.attn_v": ...}``."""

    def kind(name: str) -> str:
        layer, own = name.split(".")[-3:-1] if name.startswith("blk.") else ("", name.split(".")[0])
        return kinds.get(f"{layer}.{own}", kinds.get(own, default))

    return kind


#: File formats that can be all of a model, and mixtures that files are made of.
FORMATS: dict[str, str | Callable[[str], str]] = {
    name: name
    for name in (
        "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k",
        "q5_k", "q6_k", "iq4_nl",
    )
} | {
    # Query, key and value of three formats have to become one matrix.
    "mixed": mixture(
        "q4_0", attn_q="q4_0", attn_k="q8_0", attn_v="f16", attn_output="f16", ffn_down="f32",
        token_embd="bf16",
    ),
    # As many formats in one model as it has kinds of matrices.
    "mixed k": mixture(
        "q2_k", attn_output="q3_k", ffn_gate="q5_k", ffn_up="q5_k", ffn_down="q6_k",
        token_embd="q4_k", output="q5_1",
    ),
    # Half of the layers with finer values and output of the feed-forward network.
    "q4_k_m": mixture(
        "q4_k", token_embd="q6_k", output="q6_k", **{"0.attn_v": "q6_k", "0.ffn_down": "q6_k"}
    ),
    # Rows that are no multiple of 256 take the next coarser blocks.
    "q4_k_m narrow": mixture(
        "q5_0", output="q8_0", **{"0.attn_v": "q8_0", "0.ffn_down": "q6_k", "1.ffn_down": "q4_k"}
    ),
}  # fmt: skip


#: Every architecture, as ``architecture/format``, and every type of tensor in one of them.
MODELS = (
    "llama2/q4_0", "llama3/q8_0", "llama biases/mixed", "smollm2/q4_1", "qwen1.5/mixed k",
    "qwen2/q4_k_m narrow", "qwen2.5/q4_k_m", "qwen2.5 yarn/iq4_nl", "qwen3/f32",
)  # fmt: skip


def sizes(coding: str, heads: int) -> dict[str, int]:
    """Sizes that divide, and are divided, by as little as a format's blocks allow."""
    if coding in ("f32", "f16", "bf16"):
        return {"hidden": 70, "intermediate": 101, "head_dim": 14}
    if coding == "q4_k_m narrow":
        return {"hidden": 96, "intermediate": 768, "head_dim": 32}
    if coding.endswith(("k", "_k_m")):
        return {"hidden": 256, "intermediate": 768, "head_dim": 256 // math.gcd(256, heads)}
    return {"hidden": 96, "intermediate": 160, "head_dim": 32}


@cache
def model(name: str, vocab: int = 515) -> Path:
    """The random model ``architecture/format``, of :data:`MODELS` or not, written once."""
    architecture, _, coding = name.partition("/")
    own = ARCHITECTURES[architecture]
    shape = {"context": 512, "vocab": vocab, **own, **sizes(coding, own["heads"])}
    return _write(f"{name} {vocab}", {"dtype": FORMATS[coding], **shape})


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
    return write_model(folder / f"{re.sub('[ /]', '-', name)}.gguf", **shape)


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


def used_cache(path: Path) -> Path:
    """A file at ``path`` that an engine filled with programs and (played) choices."""
    own_cache(path)
    with engine(cache=path) as loaded:
        warm(loaded)
        play_tuning(loaded)
    return path


def play_tuning(loaded: Engine, *, driver: str | None = None) -> list[BestRow]:
    """Keep what ``loaded`` runs as if it had been tuned, under its own driver key or another."""
    choices = loaded.runner.planner.choices.items()
    rows = [_row(loaded, workload, choice.config, driver) for workload, choice in choices]
    plant(loaded.store, rows)
    return rows


def _row(loaded: Engine, workload: Workload, config: Config, driver: str | None = None) -> BestRow:
    return BestRow(
        workload=str(workload),
        driver=driver or loaded.device.driver_key,
        digest=SPECS[workload.op].digest(),
        config=str(config),
        time=1e-3,
        layout=SPECS[workload.op].layout(workload, config),
    )


def play_lottery(loaded: Engine, seed: int) -> None:
    """Keep random configurations as if they had been found best for what ``loaded`` runs.

    Of each variant as often, however many configurations it has.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for workload in sorted(loaded.runner.planner.choices, key=str):
        spec = SPECS[workload.op]
        by_variant: dict[str, list[Config]] = {}
        for config in spec.feasible(workload, loaded.device):
            by_variant.setdefault(config.variant, []).append(config)
        names = sorted(by_variant)
        chosen = by_variant[names[rng.integers(len(names))]]
        rows.append(_row(loaded, workload, chosen[rng.integers(len(chosen))]))
    plant(loaded.store, rows)


def plant(store: Store, rows: list[BestRow]) -> None:
    for row in rows:
        store.set_best(row)


def prompt(length: int, vocab: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(seed + length).integers(0, vocab, length).tolist()


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """``||got - want|| / ||want||``."""
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))
