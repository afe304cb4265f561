"""Model directories: what is read from them, and what is refused, by file and tensor."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_hf import hf_name, write_directory
from clk_models import CHATML, write_model
from clkiln.errors import ModelError, UnsupportedModel
from clkiln.inference.config import ModelConfig, tensor_shapes
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.hf import HFDirectory
from clkiln.inference.model import open_model
from clkiln.inference.rope import Rope

INDEX = "model.safetensors.index.json"
SIZES: dict[str, Any] = {"hidden": 32, "intermediate": 48, "heads": 2, "kv_heads": 1, "vocab": 262}
#: What a directory and a GGUF file of the same model say in their own ways.
OWN = {"rope", "digest", "name", "top_k", "top_p", "temperature"}


def directory(
    folder: Path,
    *,
    shards: int = 1,
    config: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
    **options: Any,
) -> Path:
    source = write_model(folder / "source.gguf", dtype="f32", **{**SIZES, **options})
    return write_directory(folder / "m", source, shards=shards, config=config, tensors=tensors)


def config(folder: Path, values: dict[str, Any] | None = None, **options: Any) -> ModelConfig:
    return open_model(directory(folder, config=values, **options)).config


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the object that a JSON file holds; it begins empty."""
    value = json.loads(path.read_text()) if path.exists() else {}
    change(value)
    path.write_text(json.dumps(value))


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_says_what_the_gguf_file_says(tmp_path: Path, architecture: Any, tied: bool) -> None:
    biased = architecture == "llama"
    found = config(
        tmp_path, architecture=architecture, tied=tied, layers=3, rope_theta=5e5, context=777,
        head_dim=24, output_bias=biased, ffn_bias=biased, bias=biased or None,
    )  # fmt: skip
    expected = ModelConfig.from_gguf(GGUFFile.open(tmp_path / "source.gguf"))
    assert {k: v for k, v in vars(found).items() if k not in OWN} == {
        k: v for k, v in vars(expected).items() if k not in OWN
    }
    assert found.rope == Rope(5e5, 24, "half", original_context=777)
    assert (found.name, len(found.digest)) == ("m", 32)


def test_tensors_are_views_of_the_files(tmp_path: Path) -> None:
    model = open_model(directory(tmp_path, architecture="qwen3", tied=False, shards=3))
    source, reference = model.weights.source, GGUFFile.open(tmp_path / "source.gguf")
    assert set(source.tensors) == {name for name, _ in tensor_shapes(model.config)}
    for name in source.tensors:
        view = source.raw(name)
        assert (view == reference.raw(name)).all()
        assert not view.flags.owndata and not view.flags.writeable
        assert source.place(name)[0].name.startswith("model-0000")
    with pytest.raises(ModelError, match=r"m has no tensor model\.layers\.9\.mlp\.up_proj\.weight"):
        source.raw("blk.9.ffn_up.weight")


def test_defaults_where_the_configuration_is_silent(tmp_path: Path) -> None:
    silent = ("head_dim", "num_key_value_heads", "rope_theta", "hidden_act", "attention_bias")
    silent += ("mlp_bias", "tie_word_embeddings", "architectures")
    found = config(tmp_path, dict.fromkeys(silent), kv_heads=2, head_dim=16)
    assert (found.head_dim, found.n_kv_heads, found.rope.theta) == (16, 2, 1e4)
    assert found.tied
    assert not config(tmp_path, dict.fromkeys(silent), kv_heads=2, head_dim=16, tied=False).tied
    found = config(tmp_path, {"head_dim": None}, architecture="qwen3", head_dim=128)
    assert found.head_dim == 128


def test_a_tied_head_is_the_embedding_whatever_the_file_holds(tmp_path: Path) -> None:
    head = np.ones((262, 32), np.float32)
    assert config(tmp_path, tensors={"lm_head.weight": head}).tied
    assert not config(tmp_path, {"tie_word_embeddings": False}, tied=False).tied
    with pytest.raises(ModelError, match=r"the tensor lm_head\.weight is missing"):
        config(tmp_path, {"tie_word_embeddings": False}, tensors={"lm_head.weight": None})


LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def test_rotary_scaling(tmp_path: Path) -> None:
    def rope(values: dict[str, Any]) -> Rope:
        return config(tmp_path, values).rope

    plain = Rope(1e4, 16, "half", original_context=512)
    assert rope({"rope_scaling": {"type": "default"}}) == plain
    # As newer and as older versions of the library write it.
    for kind in ("rope_type", "type"):
        linear = rope({"rope_scaling": {kind: "linear", "factor": 4.0}})
        assert (linear.scaling, linear.factor) == ("linear", 4)
        llama3 = rope({"rope_scaling": {kind: "llama3", **LLAMA3}})
        assert (llama3.scaling, llama3.factor, llama3.original_context) == ("llama3", 8, 64)
        assert (llama3.low_freq_factor, llama3.high_freq_factor) == (1, 4)
    parameters = {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}
    newer = rope({"rope_parameters": parameters, "rope_theta": None})
    assert (newer.scaling, newer.theta, newer.original_context) == ("llama3", 5e5, 64)
    assert rope({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": None}).theta == 7


def test_yarn(tmp_path: Path) -> None:
    yarn: dict[str, Any] = {"type": "yarn", "factor": 4.0}

    def found(**extra: Any) -> ModelConfig:
        return config(tmp_path, {"rope_scaling": {**yarn, **extra}})

    short = found(original_max_position_embeddings=100)
    assert (short.rope.original_context, short.context_length) == (100, 512)
    assert short.rope.attention_factor == pytest.approx(1 + 0.1 * math.log(4))
    assert (short.rope.beta_fast, short.rope.beta_slow) == (32, 1)
    # What it stretches to is the context.
    assert (found().rope.original_context, found().context_length) == (512, 2048)
    assert found(attention_factor=0.5, beta_fast=16, beta_slow=2.0).rope.attention_factor == 0.5
    both = found(mscale=2.0, mscale_all_dim=1.0).rope.attention_factor
    assert both == pytest.approx((1 + 0.2 * math.log(4)) / (1 + 0.1 * math.log(4)))


def test_sampling_defaults(tmp_path: Path) -> None:
    path = directory(tmp_path)
    advice = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05}
    edit(path / "generation_config.json", lambda v: v.update(advice, repetition_penalty=1.05))
    found = open_model(path).config
    assert {name: getattr(found, name) for name in advice} == advice
    assert (found.repeat_penalty, found.repeat_last_n) == (1.05, -1)
    edit(path / "generation_config.json", lambda v: v.update(top_k="many", top_p=7, min_p=-1))
    found = open_model(path).config
    assert (found.temperature, found.top_k, found.top_p, found.min_p) == (0.6, None, None, None)
    edit(path / "generation_config.json", lambda v: v.update(do_sample=False))
    assert open_model(path).config.temperature is None


def test_chat_templates(tmp_path: Path) -> None:
    path = directory(tmp_path)
    assert open_model(path).chat_template == CHATML
    several = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    edit(path / "tokenizer_config.json", lambda v: v.update(chat_template=several))
    assert open_model(path).chat_template == "d"
    edit(path / "chat_template.json", lambda v: v.update(chat_template="j"))
    assert open_model(path).chat_template == "j"
    (path / "chat_template.jinja").write_text("of its own")
    assert open_model(path).chat_template == "of its own"
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        (path / name).unlink()
    assert open_model(path).chat_template is None


def test_digest_tells_models_apart(tmp_path: Path) -> None:
    path = directory(tmp_path)
    digests = {open_model(path).config.digest}
    edit(path / "config.json", lambda v: v.update(rope_theta=5e5))
    digests.add(open_model(path).config.digest)
    for options in ({"shards": 2}, {"vocab": 263}, {"layers": 3}):
        shutil.rmtree(path)
        digests.add(config(tmp_path, **options).digest)
    assert len(digests) == 5


def test_a_snapshot_in_a_hub_cache(tmp_path: Path) -> None:
    """Its files are links into another folder, and its folder is named by a commit."""
    written = directory(tmp_path, shards=2)
    snapshot = tmp_path / "models--owner--tiny-model" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for file in written.iterdir():
        os.symlink(file, snapshot / file.name)
    assert open_model(snapshot).config.name == "owner/tiny-model"


# -- what is refused: the configuration ------------------------------------------------------------

WINDOW = {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mamba"}, "architecture 'mamba'; clkiln has llama, qwen2, qwen3"),
        ({"model_type": None}, "architecture None"),
        ({"architectures": ["LlamaForTokenClassification"]}, "LlamaForTokenClassification.*Causal"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantization_.* \(gptq\)"),
        ({"num_local_experts": 8}, "num_local_experts = 8"),
        ({"is_causal": False}, "is_causal = False"),
        ({"residual_multiplier": 0.22}, "residual_multiplier = 0.22"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rotary scaling 'longrope'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differs between layers"),
        ({"layer_types": ["linear_attention"] * 2}, "layer type 'linear_attention'"),
        ({"sliding_window": 128}, "sliding-window .* 128 tokens"),
        ({"head_dim": 15}, "heads of 15 values"),
        ({"torch_dtype": "float8", "quantization_config": {}, "mlp_bias": True}, "mlp.*missing"),
    ],
)
def test_what_clkiln_lacks_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        config(tmp_path, values)
    assert "\n" not in str(caught.value) and "/m" in str(caught.value)
    assert isinstance(caught.value, UnsupportedModel) == ("missing" not in message)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_sliding_windows_that_are_on(tmp_path: Path, architecture: Any) -> None:
    sliding = ["full_attention", "sliding_attention"]
    off: list[dict[str, Any]] = [
        {"use_sliding_window": False, "layer_types": ["full_attention"] * 2},
        {"max_window_layers": 2},
        {"sliding_window": None},
        {"sliding_window": 512},
        {"layer_types": ["full_attention"] * 2},
    ]
    for values in off:
        config(tmp_path, {**WINDOW, **values}, architecture=architecture)
    for values in ({}, {"layer_types": sliding}, {"layer_types": sliding, "max_window_layers": 9}):
        with pytest.raises(UnsupportedModel, match=r"sliding-window .* 128 tokens"):
            config(tmp_path, {**WINDOW, **values}, architecture=architecture)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"num_hidden_layers": 3}, r"tensor model\.layers\.2\.input_layernorm\.weight is missing"),
        ({"hidden_size": 64}, r"model\.embed_tokens\.weight has the shape \(262, 32\)"),
        ({"vocab_size": 300}, r"model\.embed_tokens\.weight has the shape \(262, 32\), not \(300"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_key_value_heads": 3}, "2 heads over 3 key-value heads"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is None"),
        ({"rope_scaling": {"type": "yarn", "factor": 1e200}}, "rope_scaling.factor is 1e"),
        ({"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1}}, "low_freq_factor"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes'"),
        ({"layer_types": 2}, "layer_types is not a list"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        config(tmp_path, values)
    assert not isinstance(caught.value, UnsupportedModel)


# -- what is refused: files and tensors ------------------------------------------------------------


def test_every_tensor_is_needed_and_named_with_its_file(tmp_path: Path) -> None:
    names = [name for name, _ in tensor_shapes(config(tmp_path, architecture="qwen3"))]
    for name in map(hf_name, names):
        with pytest.raises(ModelError, match=f"m is inconsistent: the tensor {name} is missing"):
            config(tmp_path, architecture="qwen3", tensors={name: None})
    odd = {"model.layers.1.mlp.up_proj.weight": np.ones((48, 31), np.float32)}
    with pytest.raises(ModelError, match=r"m/model\.safetensors is incon.*up_proj.*\(48, 31\)"):
        config(tmp_path, tensors=odd)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.k_proj.bias", "model.layers.2.mlp.up_proj.weight", "score.weight",
     "model.layers.01.mlp.up_proj.weight", "blk.0.attn_q.bias"],
)  # fmt: skip
def test_a_tensor_that_nobody_would_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"m/model\.safetensors: unsupported tensor {name}"):
        config(tmp_path, tensors={name: np.ones(16, np.float32)})


def test_buffers_of_old_versions_are_passed_over(tmp_path: Path) -> None:
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert config(tmp_path, tensors={old: np.ones(8, np.float32)})


def test_shards_are_held_against_their_index(tmp_path: Path) -> None:
    path = directory(tmp_path, shards=2)
    whole = (path / INDEX).read_text()
    first, second = sorted(path.glob("model-*.safetensors"))

    def refused(message: str, change: Callable[[dict[str, Any]], object] = lambda v: None) -> None:
        edit(path / INDEX, change)
        with pytest.raises(ModelError, match=message) as caught:
            HFDirectory.open(path)
        assert "\n" not in str(caught.value)
        (path / INDEX).write_text(whole)

    def put(name: str, file: Any) -> Callable[[dict[str, Any]], None]:
        return lambda value: value["weight_map"].__setitem__(name, file)

    norm = "model.norm.weight"
    place = json.loads(whole)["weight_map"][norm]
    other = next(file.name for file in (first, second) if file.name != place)
    refused(rf"{INDEX} is incon.*{norm}", put(norm, other))
    refused("'lm_head.weight' does not lie in", put("lm_head.weight", place))
    refused(rf"tensor '{norm}' lies in {place}", lambda v: v["weight_map"].pop(norm))
    refused("lacks model-9.safetensors", put("lm_head.weight", "model-9.safetensors"))
    refused("it has no weight_map", lambda v: v.pop("weight_map"))
    refused("it has no weight_map", lambda v: v.update(weight_map=[1]))
    shutil.copy(second, tmp_path / "outside.safetensors")
    outside = str(tmp_path / "outside.safetensors")
    for file in ("../outside.safetensors", outside, "..", ".", "", "a\\b", "c:d", "a\0b", 7, None):
        refused("which is no file name", put(norm, file))
    second.unlink()
    refused(rf"m lacks {second.name}, a part of the model")


@pytest.mark.parametrize("name", ["config.json", INDEX, "generation_config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"a":1,"a":1}', b"[" * 200_000])
def test_damaged_small_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = directory(tmp_path, shards=2)
    (path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name} is damaged") as caught:
        open_model(path)
    assert "\n" not in str(caught.value)


def test_directories_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model directory: it has no config\.json$"):
        open_model(tmp_path)
    write_model(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"no config\.json; pass its m\.gguf instead"):
        open_model(tmp_path)
    path = directory(tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=rf"m has no model\.safetensors and no {INDEX}$"):
        open_model(path)
    (path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="its weights are pickled"):
        open_model(path)
    with open(path / "config.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match=r"config\.json has \d+ bytes, more than"):
        open_model(path)


# -- random damage ---------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 1 << 70), st.floats(), st.text(max_size=5),
    st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=3),
    st.dictionaries(st.sampled_from(["type", "factor", "rope_theta"]), st.integers(), max_size=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = directory(tmp_path_factory.mktemp("fuzz"), architecture="qwen2")
    return path, json.loads((path / "config.json").read_text())


@settings(max_examples=300)
@given(data=st.data())
def test_any_configuration_loads_or_is_refused(
    sound: tuple[Path, dict[str, Any]], data: st.DataObject
) -> None:
    path, stated = sound
    more = ("layer_types", "rope_parameters", "max_window_layers", "use_sliding_window")
    names = st.sampled_from([*stated, *more])
    changes = data.draw(st.dictionaries(names, VALUES, min_size=1, max_size=3))
    (path / "config.json").write_text(json.dumps({**stated, **changes}))
    try:
        open_model(path)
    except ModelError as error:
        assert "\n" not in str(error)
