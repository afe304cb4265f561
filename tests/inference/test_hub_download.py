"""Fetching from a hub on this machine: interrupted, gated, broken, sharded, or simply whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clk_cli
from clk_hub import Hub, Repository, serve
from clkiln.errors import ModelError
from clkiln.inference.catalog import pull, resolve
from clkiln.inference.hub import Unreachable
from clkiln.inference.hub_download import Remote

pytest.importorskip("huggingface_hub")

MIB = 1 << 20
#: huggingface_hub hands on ten MiB at a time: two such pieces and a rest.
LARGE = b"GGUF" + os.urandom(21 * MIB)
SHARDS = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 1000 for i in (1, 2)}
SHARDED = {
    "README.md": b"read me",
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": dict(zip("ab", SHARDS, strict=True))}
    ).encode(),
    "consolidated.safetensors": b"another copy",
    **SHARDS,
    "onnx/model.onnx": b"onnx",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repositories = {
        "o/gguf": Repository({"a-Q4_0.gguf": b"GGUF4" * 99, "a-Q8_0.gguf": b"GGUF8" * 99}),
        "o/large": Repository({"a.gguf": LARGE}),
        "o/directory": Repository(SHARDED),
        "o/gated": Repository({"a.gguf": b"GGUF"}, gated=True, token="secret"),
        "o/evil": Repository({"../../../evil.gguf": b"GGUF", "/tmp/evil.gguf": b"GGUF"}),
    }
    with serve(Hub(repositories)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("CLKILN_MODELS_DIR", str(tmp_path / "models"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def files(folder: Path) -> dict[str, bytes]:
    """What a pull left for people to see."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if "/." not in f"/{name}"}


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_file_of_several(hub: Hub, models: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = pull("o/gguf", lambda *step: seen.append(step))
    content = hub.repositories["o/gguf"].files
    assert path == models / "o/gguf/a-Q4_0.gguf" == resolve("o/gguf")
    assert files(models) == {"o/gguf/a-Q4_0.gguf": content["a-Q4_0.gguf"]}
    size = len(content["a-Q4_0.gguf"])
    assert seen[0] == ("a-Q4_0.gguf", 0, size) and seen[-1] == ("a-Q4_0.gguf", size, size)
    assert pull("o/gguf:Q8_0").read_bytes() == content["a-Q8_0.gguf"]
    read = len(hub.downloads())
    assert pull("o/gguf") == path and pull("o/gguf:a-Q8_0.gguf").name == "a-Q8_0.gguf"
    assert len(hub.downloads()) == read, "what is there is not read again"


def test_what_changed_on_the_hub_is_read_again(hub: Hub) -> None:
    path = pull("o/gguf")
    repository = hub.repositories["o/gguf"]
    repository.files["a-Q4_0.gguf"] = b"GGUF5" * 99  # as long as before
    repository.commit = "d" * 40
    assert pull("o/gguf", revision="d" * 40).read_bytes() == b"GGUF5" * 99
    path.write_bytes(b"short")
    assert pull("o/gguf").read_bytes() == b"GGUF5" * 99
    (path.parent / ".pulled.json").write_text("[]")
    read = len(hub.downloads())
    assert pull("o/gguf") == path
    assert len(hub.downloads()) == read, "without a note the file itself is looked at"


def test_a_directory_of_safetensors(hub: Hub, models: Path) -> None:
    path = pull("o/directory")
    assert path == models / "o/directory" == resolve("o/directory")
    wanted = [name for name in SHARDED if name not in ("README.md", "consolidated.safetensors")]
    assert files(path) == {n: SHARDED[n] for n in wanted if not n.startswith("onnx")}


def test_a_directory_that_was_cut_short_goes_on(
    hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = max(SHARDS)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("o/directory", interrupt)
    with pytest.raises(ModelError, match="is missing"):
        resolve("o/directory")
    read = hub.downloads()
    pull("o/directory")
    assert [name for name, _ in hub.downloads()[len(read) :]] == [last]


def test_a_killed_download_goes_on_where_it_was(hub: Hub, models: Path) -> None:
    hub.stop_after, hub.breaks, hub.stall = 15 * MIB, 1, True
    process = clk_cli.start("pull", "o/large")
    assert hub.stalled.wait(60)
    partial = wait_for_partial(models / "o/large", 10 * MIB)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert err.decode().splitlines()[-1] == "interrupted"
    with pytest.raises(ModelError, match="clkiln pull o/large"):
        resolve("o/large")
    kept = partial.stat().st_size
    assert kept >= 10 * MIB
    hub.go_on.set()
    process = clk_cli.start("pull", "o/large")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.decode() == f"{models}/o/large/a.gguf\n"
    assert "10.0 MiB of 21.0 MiB done" in err.decode() and "\r" not in err.decode()
    assert hub.downloads() == [("a.gguf", ""), ("a.gguf", f"bytes={kept}-")]
    assert files(models) == {"o/large/a.gguf": LARGE}
    assert sorted(os.listdir(models / "o/large")) == [".pulled.json", "a.gguf"]


def wait_for_partial(folder: Path, size: int) -> Path:
    for _ in range(600):
        for path in folder.glob(".a.gguf.*.partial"):
            if path.stat().st_size >= size:
                return path
        time.sleep(0.05)
    raise AssertionError("nothing was kept")


@pytest.mark.parametrize("ignore_range", [False, True])
def test_a_broken_connection(hub: Hub, ignore_range: bool, models: Path) -> None:
    folder = models / "o/large"
    folder.mkdir(parents=True)
    digest = hashlib.sha256(LARGE).hexdigest()
    (folder / f".a.gguf.{digest[-16:]}.partial").write_bytes(LARGE[: 11 * MIB])
    (folder / ".a.gguf.of-an-older-one.partial").write_bytes(b"old")
    hub.ignore_range = ignore_range
    assert pull("o/large").read_bytes() == LARGE
    assert hub.downloads()[0] == ("a.gguf", f"bytes={11 * MIB}-")
    assert sorted(os.listdir(folder)) == [".pulled.json", "a.gguf"]


def test_a_partial_file_that_is_too_long_is_begun_anew(hub: Hub, models: Path) -> None:
    folder = models / "o/gguf"
    folder.mkdir(parents=True)
    content = hub.repositories["o/gguf"].files["a-Q4_0.gguf"]
    digest = hashlib.sha256(content).hexdigest()
    partial = folder / f".a-Q4_0.gguf.{digest[-16:]}.partial"
    partial.write_bytes(content + b"more")
    assert pull("o/gguf").read_bytes() == content
    partial.write_bytes(b"x" * len(content))  # whole, and wrong
    (folder / "a-Q4_0.gguf").unlink()
    with pytest.raises(ModelError, match="arrived damaged"):
        pull("o/gguf")
    assert pull("o/gguf").read_bytes() == content


@pytest.mark.parametrize("name", ["o/gguf", "o/directory"])
def test_what_arrives_is_verified(hub: Hub, models: Path, name: str) -> None:
    hub.corrupt = True
    with pytest.raises(ModelError, match="arrived damaged; nothing of it was kept") as error:
        pull(name)
    one_line(error)
    assert files(models) == {}
    hub.corrupt = False
    assert pull(name).exists()


@pytest.mark.parametrize(
    ("name", "revision", "problem"),
    [
        ("o/none", None, "has no model o/none, or it is private"),
        ("o/gated", None, "o/gated is gated: ask for access at .*/o/gated, then set HF_TOKEN"),
        ("o/gguf", "v9", "o/gguf has no revision 'v9'"),
        ("o/gguf:Q6_K", None, "o/gguf has no Q6_K; it has a-Q4_0.gguf, a-Q8_0.gguf"),
        ("o/evil", None, "o/evil has no .gguf file"),
        ("o/a--b", None, "o/a--b"),
        ("smollm2-135m", "main", "has no revisions"),
    ],
)
def test_what_the_hub_does_not_give(
    hub: Hub, models: Path, name: str, revision: str | None, problem: str
) -> None:
    with pytest.raises(ModelError, match=problem) as error:
        pull(name, revision=revision)
    one_line(error)
    assert not models.exists() or list(models.iterdir()) == [], "no empty folders stay"
    assert not list(models.parent.glob("*evil*"))


def test_a_token_opens_gates(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert pull("o/gated").read_bytes() == b"GGUF"
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(ModelError, match="is gated"):
        pull("o/gated")


def test_without_a_network(
    hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = pull("o/gguf")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match="is there a network") as error:
        pull("o/directory")
    one_line(error)
    assert not (models / "o/directory").exists()
    assert pull("o/gguf") == path
    assert "stays as it was pulled before" in caplog.text
    with pytest.raises(Unreachable):
        pull("o/gguf", revision="main")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.status = 500
    assert pull("o/gguf") == path
    with pytest.raises(Unreachable, match=r"refuses o/directory: .*500"):
        pull("o/directory")


def test_no_room(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(ModelError, match=r"takes 21.0 MiB more and .* has 1000 B free"):
            pull("o/large")
    assert hub.downloads() == [] and files(models) == {}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ModelError, match=r"No space left.*CLKILN_MODELS_DIR") as error:
            pull("o/gguf")
    one_line(error)
    assert files(models) == {}
    assert pull("o/gguf").exists()


def test_a_folder_that_cannot_be_made(hub: Hub, models: Path) -> None:
    models.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot keep o/gguf"):
        pull("o/gguf")


def test_two_at_once(hub: Hub, models: Path) -> None:
    from filelock import FileLock

    (models / "o/gguf").mkdir(parents=True)
    with FileLock(models / "o/gguf/.lock"), pytest.raises(ModelError, match="another process"):
        pull("o/gguf")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLKILN_MODELS_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"pip install 'clkiln\[hub\]'"):
        pull("o/gguf")


def test_paths_that_lead_elsewhere_are_left_out() -> None:
    from clkiln.inference.hub_download import _remote

    def sibling(path: str) -> Any:
        return type("Sibling", (), {"rfilename": path, "size": 1, "blob_id": "0", "lfs": None})

    for path in ("../a", "a/../../b", "/a", "a\\b", "C:a", ".."):
        assert _remote(sibling(path)) is None, path
    assert _remote(sibling("a/b.gguf")) == Remote("a/b.gguf", 1, "git:0")
