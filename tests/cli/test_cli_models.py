"""``clkiln models`` and ``clkiln pull`` of a hub model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import clk_engine
from clk_cli import Result
from clk_hub import Hub, Repository, serve

Call = Callable[..., Result]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv("CLKILN_MODELS_DIR", str(folder))
    target = folder / "owner/name/model-Q8_0.gguf"
    target.parent.mkdir(parents=True)
    target.write_bytes(clk_engine.small_model().read_bytes())
    return folder


def test_the_list(call: Call, models: Path) -> None:
    path = models / "owner/name/model-Q8_0.gguf"
    result = call("models")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0] == "owner/name" and str(path) in result.out
    [row] = json.loads(call("models", "--json").out)
    assert row == {
        "name": "owner/name", "bytes": path.stat().st_size, "format": "gguf",
        "quantisation": "q8_0", "architecture": "llama", "path": str(path), "problem": None,
    }  # fmt: skip


def test_the_list_says_what_cannot_run(call: Call, models: Path) -> None:
    folder = models / "owner/name"
    clk_engine.variation(folder / "gemma-Q4_0.gguf", architecture="gemma3")
    (folder / "damaged-Q4_1.gguf").write_bytes(b"GGUF" + bytes(50))
    (models / "owner/begun").mkdir()
    rows = {row["name"]: row for row in json.loads(call("models", "--json").out)}
    problems = {name.partition(":")[2] or name: row["problem"] for name, row in rows.items()}
    assert problems.pop("model-Q8_0.gguf") is None
    assert "gemma3" in problems["gemma-Q4_0.gguf"]
    assert "damaged-Q4_1.gguf" in problems["damaged-Q4_1.gguf"]
    assert "not fetched in full" in problems["owner/begun"]
    text = call("models")
    assert text.code == 0 and text.out.count("cannot run:") == 3


def test_an_empty_list(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLKILN_MODELS_DIR", str(tmp_path / "none"))
    result = call("models")
    assert (result.code, result.out) == (0, "") and "clkiln pull smollm2-135m" in result.err
    assert json.loads(call("models", "--json").out) == []


@pytest.mark.parametrize("by", ["name", "path"])
def test_show(call: Call, models: Path, by: str) -> None:
    path = models / "owner/name/model-Q8_0.gguf"
    name = "owner/name" if by == "name" else str(path)
    result = call("models", "show", name)
    assert (result.code, result.err) == (0, "")
    assert [line for line in result.out.splitlines() if len(line) > 80 and "/" not in line] == []
    for part in (
        "llama",
        "2 layers",
        "6 heads of 16, 2 for",
        "1,024 tokens",
        "q8_0",
        "BPE (smollm)",
    ):
        assert part in " ".join(result.out.split()), part
    data = json.loads(call("models", "show", name, "--json").out)
    assert data["unsupported"] is None and data["chat_template"] is True and data["tied"] is True
    assert data["bytes"] == path.stat().st_size
    assert sum(each["count"] for each in data["tensors"].values()) == 2 + 2 * 9
    assert sum(each["bytes"] for each in data["tensors"].values()) < data["bytes"]
    assert (data["vocab"], data["hidden"], data["rope"]["style"]) == (515, 96, "interleaved")


def test_show_of_what_clkiln_lacks(call: Call, tmp_path: Path) -> None:
    path = clk_engine.variation(tmp_path / "m.gguf", architecture="gemma3", template=None)
    result = call("models", "show", path)
    assert result.code == 0 and "cannot run  unsupported architecture 'gemma3'" in result.out
    data = json.loads(call("models", "show", path, "--json").out)
    assert data["architecture"] == "gemma3" and data["layers"] == 2
    assert data["unsupported"].startswith("unsupported architecture")
    strange = clk_engine.variation(
        tmp_path / "t.gguf", metadata={"tokenizer.ggml.model": "unigram"}
    )
    assert "unigram" in call("models", "show", strange).out


def test_rm(call: Call, models: Path) -> None:
    path = models / "owner/name/model-Q8_0.gguf"
    size = path.stat().st_size
    for answer in ("n\n", "\n"):
        result = call("models", "rm", "owner/name", stdin=answer)
        assert (result.code, result.out) == (0, "") and "nothing was deleted" in result.err
    nobody = call("models", "rm", "owner/name")
    assert nobody.code == 2 and "add --yes" in nobody.err
    assert path.exists()
    result = call("models", "rm", "owner/name", "--yes", "--json")
    assert json.loads(result.out)["bytes"] == size
    assert os.listdir(models) == []
    again = call("models", "rm", "owner/name", "--yes")
    assert (again.code, again.out) == (1, "") and "there is no model" in again.err


def test_rm_after_a_yes(call: Call, models: Path) -> None:
    result = call("models", "rm", "owner/name:q8_0", stdin="y\n")
    assert result.code == 0 and result.out.startswith("deleted owner/name:q8_0: ")
    assert os.listdir(models) == []


def test_pull_from_the_hub(call: Call, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    content = clk_engine.small_model().read_bytes()
    with serve(Hub({"o/n": Repository({"small-Q8_0.gguf": content})})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        result = call("pull", "o/n")
        path = models / "o/n/small-Q8_0.gguf"
        assert (result.code, result.out) == (0, f"{path}\n")
        assert result.err.startswith("fetching small-Q8_0.gguf (0 B of ")
        again = call("pull", "o/n:q8_0", "--json")
        data = {"model": "o/n:q8_0", "path": str(path), "bytes": len(content)}
        assert (json.loads(again.out), again.err) == (data, "")
        missing = call("pull", "o/nn")
        assert (missing.code, missing.out) == (1, "") and missing.err.count("\n") == 1
    assert path.read_bytes() == content
    assert call("models", "show", "o/n").code == 0
