"""Model directories written by the ``transformers`` library itself, and its own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clk_engine
from clk_hf import write_tokenizer

pytestmark = pytest.mark.long

VOCAB = 517
#: Both sides compute in float32.
EXPECTED = 2e-5
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True, "head_dim": 24},
    "llama biases": {"attention_bias": True, "mlp_bias": True},
    "llama linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "llama llama3": {"rope_parameters": LLAMA3},
    "qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen2 yarn": {"rope_parameters": YARN, "tie_word_embeddings": True},
    "qwen2 off": {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 1},
    "qwen3": {"head_dim": 24, "tie_word_embeddings": True},
    "qwen3 biases": {"head_dim": 32, "attention_bias": True},
}


def write(path: Path, case: str, dtype: str) -> Any:
    """A random model in the directory ``path``, and the library's model of it in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family = case.split()[0].capitalize()
    torch.manual_seed(sum(case.encode()))
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **CASES[case]})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            # Norms are ones and biases zeros, which would hide a mix-up.
            torch.nn.init.normal_(parameter, float("norm" in name), 0.2)
    model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size="200KB")
    write_tokenizer(path, VOCAB)
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def reference_logits(model: Any, ids: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([ids])).logits[0, -1].double().numpy()
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, case: str, dtype: str) -> None:
    model = write(tmp_path / "m", case, dtype)
    with clk_engine.engine(tmp_path / "m") as engine:
        for length in (1, 9, 200):
            ids = clk_engine.prompt(length, VOCAB)
            engine.runner.reset()
            engine.runner.feed(ids)
            want = reference_logits(model, ids)
            error = clk_engine.relative_error(engine.runner.logits(), want)
            print(f"{case} {dtype}, {length} tokens: {error:.1e}")
            assert error <= EXPECTED, f"after {length} tokens: relative L2 error {error:.2e}"
