"""Names of hub models: what they mean among a repository's files, and finding what was pulled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clkiln.errors import ModelError
from clkiln.inference.hub import (
    PREFERRED,
    HubName,
    choose,
    directory_files,
    find,
    missing_weights,
    pulled_files,
)

words = st.text("abcXYZ019_-.", min_size=1, max_size=12).filter(lambda word: word[0] not in "-.")
SAFETENSORS = ("config.json", "tokenizer.json", "model.safetensors")


@given(words, words, st.none() | st.sampled_from(["a.gguf", "sub/b-Q8_0.gguf", "Q4_K_M"]))
def test_names_are_parsed(owner: str, name: str, file: str | None) -> None:
    text = f"{owner}/{name}" + (f":{file}" if file else "")
    parsed = HubName.parse(text)
    if name.endswith((".gguf", ".safetensors")):
        assert parsed is None
    else:
        assert parsed == HubName(f"{owner}/{name}", file or "")
        assert str(parsed) == text
        assert HubName.parse(f"https://huggingface.co/{text}") == parsed
        assert HubName.parse(f"hf.co/{text}") == parsed


@pytest.mark.parametrize(
    "text",
    [
        "", "model", "a/b/c", "/a/b", "../b", "a/..", "a/.b", "a/b:", "a\\b", "a/b:c:d", "~/b",
        "./b", "a/model.gguf", "C:/model", "ä/b", "a/b\n", "http://elsewhere/a/b",
    ],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    assert HubName.parse(text) is None


@given(st.lists(st.sampled_from(PREFERRED), min_size=1, unique=True), st.data())
def test_the_preferred_quantisation_is_taken(tags: list[str], data: st.DataObject) -> None:
    files = [f"Some-Model-1.5B.{tag.lower() if i % 2 else tag}.gguf" for i, tag in enumerate(tags)]
    aside = ["mmproj-f16.gguf", "imatrix.gguf", "README.md", "x-Q4_K_M-00001-of-00002.gguf"]
    listed = data.draw(st.permutations([*files, *aside]))
    best = min(tags, key=PREFERRED.index)
    assert choose(HubName("o/n"), listed) == files[tags.index(best)]
    for tag, file in zip(tags, files, strict=True):
        assert choose(HubName("o/n", tag), listed) == file
        assert choose(HubName("o/n", tag.swapcase()), listed) == file
        assert choose(HubName("o/n", file), listed) == file


@pytest.mark.parametrize(
    ("file", "files", "problem"),
    [
        ("", [], "no .gguf file and no safetensors"),
        ("", ["README.md", "pytorch_model.bin", "config.json"], "no .gguf file and no safetensors"),
        ("", ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], "only files in several parts"),
        ("a-00001-of-00002.gguf", ["a-00001-of-00002.gguf"], "a model in several parts"),
        ("", ["a-Q4_0.gguf", "b-Q4_0.gguf"], "several files; name one: .*a-Q4_0.gguf, b-Q4_0.gguf"),
        ("Q4_0", ["a-Q4_0.gguf", "b-Q4_0.gguf"], "several files"),
        ("", ["left.gguf", "right.gguf"], "several files"),
        ("a-Q4_1.gguf", ["a-Q4_0.gguf"], "has no a-Q4_1.gguf; did you mean a-Q4_0.gguf"),
        ("Q4_0", ["a-Q4_0_4_4.gguf"], "has no Q4_0"),
        ("x.gguf", [*SAFETENSORS], "it has no .gguf file"),
        ("../../x.gguf", ["x.gguf"], "has no ../../x.gguf"),
    ],
)
def test_no_choice(file: str, files: list[str], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        choose(HubName("o/n", file), files)


def test_a_directory_of_safetensors() -> None:
    others = ["README.md", "onnx/model.onnx", "pytorch_model.bin", "training_args.bin", "a.py"]
    assert choose(HubName("o/n"), [*SAFETENSORS, *others]) is None
    assert directory_files([*SAFETENSORS, *others]) == list(SAFETENSORS)
    sharded = ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"]
    assert choose(HubName("o/n"), sharded) is None
    assert directory_files(sharded) == sharded[:2]
    assert choose(HubName("o/n"), [*SAFETENSORS, "a.gguf"]) == "a.gguf"


def test_what_was_pulled_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "o/n"
    assert find(HubName("o/n"), tmp_path) is None
    (folder / "sub").mkdir(parents=True)
    assert find(HubName("o/n"), tmp_path) is None
    (folder / ".a-Q4_0.gguf.0123.partial").touch()
    (folder / ".pulled.json").touch()
    assert pulled_files(folder) == [] and find(HubName("o/n"), tmp_path) is None
    (folder / "a-Q8_0.gguf").touch()
    assert find(HubName("o/n"), tmp_path) == folder / "a-Q8_0.gguf"
    (folder / "sub/a-Q4_0.gguf").touch()
    assert find(HubName("o/n"), tmp_path) == folder / "sub/a-Q4_0.gguf"
    assert find(HubName("o/n", "q8_0"), tmp_path) == folder / "a-Q8_0.gguf"
    assert find(HubName("o/n", "sub/a-Q4_0.gguf"), tmp_path) == folder / "sub/a-Q4_0.gguf"
    assert find(HubName("o/n", "Q6_K"), tmp_path) is None
    assert find(HubName("o/other"), tmp_path) is None


def test_a_directory_is_found_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "o/n"
    folder.mkdir(parents=True)
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[1]}}
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert missing_weights(folder) == shards
    with pytest.raises(ModelError, match=r"is missing.*clkiln pull o/n"):
        find(HubName("o/n"), tmp_path)
    for shard in shards:
        (folder / shard).touch()
    assert find(HubName("o/n"), tmp_path) == folder


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../../x.safetensors"}}',
              '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "x.bin"}}'],
)  # fmt: skip
def test_an_index_that_makes_no_sense(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"index\.json"):
        missing_weights(tmp_path)


def test_finding_needs_no_library(tmp_path: Path) -> None:
    (tmp_path / "o/n").mkdir(parents=True)
    (tmp_path / "o/n/a.gguf").touch()
    script = (
        "import sys; from clkiln.inference.catalog import resolve; print(resolve('o/n'));"
        "assert not {'huggingface_hub', 'numpy', 'pyopencl', 'requests'} & set(sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "CLKILN_MODELS_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert (done.stderr, done.stdout) == ("", f"{tmp_path}/o/n/a.gguf\n")
