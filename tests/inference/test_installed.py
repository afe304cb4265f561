"""The models folder: each model is listed by a name that works, and removed without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

import clk_engine
from clkiln.errors import ModelError
from clkiln.inference import catalog
from clkiln.inference.catalog import resolve
from clkiln.inference.hub import read_note, write_note
from clkiln.inference.installed import belongings, bytes_of, installed, remove


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two files of one repository, one file of another, a directory, a file of
    somebody's own, a catalog model and beginnings of a third repository."""
    folder = tmp_path / "models"
    monkeypatch.setenv("CLKILN_MODELS_DIR", str(folder))
    content = clk_engine.small_model().read_bytes()
    entry = catalog.CATALOG["smollm2-135m"]
    monkeypatch.setattr(
        catalog, "CATALOG", {entry.name: type(entry)(**{**vars(entry), "size": len(content)})}
    )
    monkeypatch.setattr("clkiln.inference.installed.CATALOG", catalog.CATALOG)
    for path in ("one/two/a-Q4_0.gguf", "one/two/sub/a-Q8_0.gguf", "one/single/b.gguf", "own.gguf"):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    write_note(folder / "one/two", {"a-Q4_0.gguf": "sha256:0", "sub/a-Q8_0.gguf": "sha256:1"})
    (folder / entry.file_name).write_bytes(content)
    (folder / f"{entry.file_name}.sha256").write_text(f"{entry.sha256}  {entry.file_name}\n")
    begun = folder / "other/begun"
    begun.mkdir(parents=True)
    (begun / ".c.gguf.0123.partial").write_bytes(bytes(1000))
    whole = folder / "other/whole"
    whole.mkdir()
    for name in ("config.json", "model.safetensors"):
        (whole / name).write_bytes(bytes(10))
    return folder


def test_everything_is_listed_by_a_name_that_works(models: Path) -> None:
    found = {model.name: model for model in installed()}
    assert set(found) == {
        "smollm2-135m", str(models / "own.gguf"), "one/two:a-Q4_0.gguf",
        "one/two:sub/a-Q8_0.gguf", "one/single", "other/begun", "other/whole",
    }  # fmt: skip
    assert [name for name, model in found.items() if not model.complete] == ["other/begun"]
    for name, model in found.items():
        assert model.size == bytes_of(model.path) > 0
        if model.complete:
            assert resolve(name) == model.path


def test_no_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLKILN_MODELS_DIR", str(models / "nowhere"))
    assert installed() == []


def test_removing_everything_leaves_an_empty_folder(models: Path) -> None:
    for model in installed():
        before = bytes_of(models)
        freed = remove(model.name)
        assert freed >= model.size
        # The note of a repository shrinks besides.
        assert 0 <= before - bytes_of(models) - freed < 200
        assert model.name not in {other.name for other in installed()}
    assert list(models.iterdir()) == []


def test_one_file_of_a_repository(models: Path) -> None:
    partial = models / "one/two/sub/.a-Q8_0.gguf.0123.partial"
    partial.write_bytes(bytes(77))
    size = bytes_of(models / "one/two/sub")
    assert belongings("one/two:q8_0") == [models / "one/two/sub/a-Q8_0.gguf"]
    assert remove("one/two:q8_0") == size
    assert not partial.parent.exists()
    assert read_note(models / "one/two") == {"a-Q4_0.gguf": "sha256:0"}
    assert resolve("one/two") == models / "one/two/a-Q4_0.gguf"


def test_all_of_a_repository(models: Path) -> None:
    size = bytes_of(models / "one/two")
    assert belongings("one/two") == [models / "one/two"]
    assert remove("one/two") == size
    assert not (models / "one/two").exists() and (models / "one/single").exists()


@pytest.mark.parametrize(
    "name", ["", "none", "one", "one/none", "one/two:Q2_K", "..", "../models", "other/whole/.."]
)
def test_what_is_not_there(models: Path, name: str) -> None:
    before = bytes_of(models)
    with pytest.raises(ModelError, match="there is no model"):
        remove(name)
    assert bytes_of(models) == before


def test_only_below_the_models_folder(models: Path, tmp_path: Path) -> None:
    outside = tmp_path / "mine.gguf"
    outside.write_bytes(b"GGUF")
    (models / "link.gguf").symlink_to(outside)
    (models / "other/linked").symlink_to(tmp_path, target_is_directory=True)
    for name in (str(outside), f"{models}/../mine.gguf"):
        with pytest.raises(ModelError, match="does not lie in"):
            remove(name)
    remove(str(models / "link.gguf"))
    with pytest.raises(ModelError, match="cannot delete"):
        remove("other/linked")
    assert outside.read_bytes() == b"GGUF"
    with pytest.raises(ModelError, match="is not here"):
        remove("smollm2-135m")
        remove("smollm2-135m")
