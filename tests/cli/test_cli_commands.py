"""The commands beside ``run``: what they print, as text and as JSON."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import clk_cli
import clk_devices
import clk_engine
import clk_report_caches
from clk_cli import Result
from clkiln import __version__
from clkiln.cache.paths import cache_file
from clkiln.cache.store import Store

Call = Callable[..., Result]

DEVICE_FIELDS = {
    "index": int, "name": str, "type": str, "platform": str, "platform_version": str,
    "driver_version": str, "opencl_c_version": str, "compute_units": int, "global_memory": int,
    "max_alloc": int, "unified_memory": bool, "local_memory": int, "local_memory_type": str,
    "max_work_group_size": int, "image2d_max_width": int, "image2d_max_height": int, "fp16": bool,
    "subgroups": bool, "command_buffers": bool, "cache_file": str,
}  # fmt: skip
BENCH_FIELDS = {
    "test": str, "n_prompt": int, "n_gen": int, "tok_s_mean": float, "tok_s_std": float,
    "device": str, "driver_version": str, "model": str, "tuned": bool, "version": str,
}  # fmt: skip


def has_fields(row: dict[str, object], fields: dict[str, type]) -> None:
    assert {name: type(row.get(name)) for name in fields} == fields


# -- devices ---------------------------------------------------------------------------------------


def test_devices_as_json(call: Call) -> None:
    result = call("devices", "--json")
    rows = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert [row["index"] for row in rows] == list(range(len(rows)))
    for row in rows:
        has_fields(row, DEVICE_FIELDS)
        assert row["type"] in ("cpu", "gpu", "accelerator")
        assert row["cache_file"] == str(cache_file(row["name"], row["platform"]))


def test_devices_as_text(call: Call) -> None:
    rows = json.loads(call("devices", "--json").out)
    text = call("devices").out
    for row in rows:
        assert f"{row['index']}: {row['name']}\n" in text
        assert row["cache_file"] in text
    one = json.loads(call("devices", "--json", "--device", 0).out)
    assert one == rows[:1]


def test_devices_that_are_tried(
    call: Call, device: str, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """Each compiles a small kernel; one that cannot says so from then on, until it can."""
    result = call("devices", "--try", "--json", "--device", device)
    assert (result.code, [row["fault"] for row in json.loads(result.out)]) == (0, [""])
    with monkeypatch.context() as broken:
        broken.setattr("clkiln.runtime.faults._KERNEL", "#error out of order")
        result = call("devices", "--try", "--device", device)
        assert result.code == 1 and "   problem    not even a small kernel works: " in result.out
        assert result.err.startswith("error: none of these devices compiles a small kernel")
        assert json.loads(call("devices", "--try", "--json", "--device", device).out)[0]["fault"]
    assert "problem    not even" in call("devices", "--device", device).out
    assert "problem    not even" not in call("devices", "--try", "--device", device).out
    assert "problem    not even" not in call("devices", "--device", device).out
    monkeypatch.setattr("clkiln.runtime.device.list_devices", list)
    assert call("devices", "--try", "--json").code == 1


def test_devices_where_there_is_none(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clkiln.runtime.device.list_devices", list)
    assert json.loads(call("devices", "--json").out) == []
    result = call("devices")
    assert result.code == 1 and not result.out
    assert "pip install 'clkiln[pocl]'" in result.err


# -- cache -----------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache file with binaries and choices."""
    path = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with clk_engine.engine(cache=path) as engine:
        clk_engine.warm(engine)
        clk_engine.play_tuning(engine)
    return path


def rows(path: Path) -> dict[str, int]:
    with Store.open(path, write=False) as store:
        return store.info()["rows"]


def test_cache_path(call: Call, cache: Path, cache_dir: Path) -> None:
    info = clk_engine.a_device().info
    own = cache_file(info.name, info.platform)
    assert own.parent == cache_dir
    assert call("cache", "path", "--device", info.selector) == Result(0, f"{own}\n", "")
    data = json.loads(call("cache", "path", "--device", info.selector, "--json").out)
    assert data == {"cache_file": str(own), "exists": False}
    assert call("cache", "path", "--cache", cache).out == f"{cache}\n"
    assert not own.exists(), "asking makes no file"


def test_cache_info(call: Call, cache: Path) -> None:
    counts = rows(cache)
    result = call("cache", "info", "--cache", cache)
    assert result.code == 0
    for content in (str(cache), f"{counts['binaries']} binaries", f"{counts['best']} best"):
        assert content in result.out
    data = json.loads(call("cache", "info", "--cache", cache, "--json").out)
    assert data["rows"] == counts
    assert data["size"] == cache.stat().st_size
    assert data["drivers"][0]["driver"] == clk_engine.a_device().info.driver_key


@pytest.mark.parametrize("command", ["info", "clear", "verify", "prune"])
def test_a_cache_that_is_not_there(call: Call, cache_dir: Path, device: str, command: str) -> None:
    result = call("cache", command, "--device", device)
    assert (result.code, result.out) == (1, "")
    assert "there is no cache file" in result.err
    assert list(cache_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "answer", "kept"),
    [
        ([], "n\n", "all"),
        ([], "\n", "all"),
        ([], "maybe\nn\n", "all"),
        (["--binaries"], "n\n", "all"),
        ([], "y\n", "nothing"),
        (["--yes"], "", "nothing"),
        (["--binaries", "--yes"], "", "parameters"),
        (["--binaries"], "y\n", "parameters"),
    ],
)
def test_cache_clear(call: Call, cache: Path, flags: list[str], answer: str, kept: str) -> None:
    before = rows(cache)
    result = call("cache", "clear", "--cache", cache, *flags, stdin=answer)
    expected = {
        "all": before,
        "nothing": dict.fromkeys(before, 0),
        "parameters": {**before, "binaries": 0},
    }[kept]
    assert result.code == 0
    assert rows(cache) == expected
    deleted = sum(before.values()) - sum(expected.values())
    assert result.out == (f"deleted {deleted} rows from {cache}\n" if deleted else "")
    assert ("Delete" in result.err) == ("--yes" not in flags)


def test_cache_clear_with_nobody_to_ask(call: Call, cache: Path) -> None:
    before = rows(cache)
    result = call("cache", "clear", "--cache", cache, stdin="")
    assert (result.code, result.out) == (2, "")
    assert "add --yes" in result.err
    assert rows(cache) == before


@pytest.mark.parametrize(
    "command",
    [
        ["cache", "info"],
        ["cache", "clear", "--yes"],
        ["cache", "verify"],
        ["cache", "prune"],
        ["report"],
    ],
)
def test_a_file_that_is_no_cache_stays_as_it_is(
    call: Call, tmp_path: Path, command: list[str]
) -> None:
    path = tmp_path / "diary.txt"
    path.write_text("Dear diary, " * 100)
    result = call(*command, "--cache", path)
    assert (result.code, result.out) == (1, "")
    assert str(path) in result.err
    assert path.read_text() == "Dear diary, " * 100


# -- bench -----------------------------------------------------------------------------------------


@pytest.fixture
def bench(call: Call, model: Path, device: str) -> Call:
    return lambda *arguments: call("bench", model, "-r", 2, *arguments, "--device", device)


def test_bench_as_json(bench: Call) -> None:
    result = bench("-p", 40, "-n", 6, "-o", "json")
    found = json.loads(result.out)
    assert [(row["test"], row["n_prompt"], row["n_gen"]) for row in found] == [
        ("pp40", 40, 0), ("tg6", 0, 6),
    ]  # fmt: skip
    for row in found:
        has_fields(row, BENCH_FIELDS)
        assert row["tok_s_mean"] > 0
        assert row["tok_s_std"] >= 0
        assert row["tuned"] is False
        assert row["model"] == "random"
        assert row["version"] == __version__
        assert row["bandwidth_share"] is None, "no roof was measured"
    assert json.loads(bench("-p", 40, "-n", 0, "--json").out)[0]["test"] == "pp40"


def test_bench_as_csv(bench: Call) -> None:
    [row] = csv.DictReader(io.StringIO(bench("-p", 0, "-n", 6, "-o", "csv").out))
    assert row["test"] == "tg6"
    assert float(row["tok_s_mean"]) > 0
    assert set(BENCH_FIELDS) <= set(row)


def test_bench_as_markdown(bench: Call) -> None:
    lines = bench("-p", 40, "-n", 6).out.splitlines()
    assert lines[0].startswith("random on ")
    assert lines[0].endswith("not tuned")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len({len(line) for line in table}) == 1
    assert [line[0] for line in table] == ["test", "---", "pp40", "tg6"]


def test_bench_of_a_tuned_model(bench: Call, cache: Path) -> None:
    with clk_engine.engine(cache=cache) as engine:
        engine.store.set_fact(
            "roof", {"bytes_per_s": 1e10, "flops_per_s": 1e10}, driver=engine.device.driver_key
        )
    [row] = json.loads(bench("-p", 0, "-n", 6, "--json", "--cache", cache).out)
    assert row["tuned"] is True


# -- tune ------------------------------------------------------------------------------------------


def test_a_dry_run_searches_nothing(call: Call, model: Path, device: str, cache_dir: Path) -> None:
    arguments = ("tune", model, "--dry-run", "--device", device)
    data = json.loads(call(*arguments, "--json").out)
    ops = {row["workload"].split()[0] for row in data["workloads"]}
    assert {"gemv", "gemm", "embedding", "rmsnorm", "rope", "argmax"} < ops
    assert all(row["feasible"] > 0 for row in data["workloads"])
    assert data["feasible"] == sum(row["feasible"] for row in data["workloads"])
    text = call(*arguments)
    assert text.code == 0
    assert f"{data['feasible']} feasible configurations" in text.out
    assert all(row["workload"] in text.out for row in data["workloads"])
    assert list(cache_dir.iterdir()) == []


@pytest.mark.long
def test_a_dry_run_of_less(call: Call, model: Path, device: str) -> None:
    arguments = ("tune", model, "--dry-run", "--json", "--device", device)
    whole = json.loads(call(*arguments).out)
    some = json.loads(call(*arguments, "--kernel", "gemv", "--kernel", "argmax").out)
    assert {row["workload"].split()[0] for row in some["workloads"]} == {"gemv", "argmax"}
    assert 0 < some["feasible"] < whole["feasible"]
    images = json.loads(call(*arguments, "--variant", "image").out)
    feasible = {row["workload"]: row["feasible"] for row in whole["workloads"]}
    for row in images["workloads"]:
        forced = row["workload"].split()[0] in ("gemv", "gemm", "embedding")
        assert 0 < row["feasible"] < feasible[row["workload"]] or not forced
    assert json.loads(call(*arguments, "--budget", "7s").out)["estimated_s"] == 7
    assert json.loads(call(*arguments, "--level", "fast").out)["estimated_s"] <= 45


@pytest.mark.long
def test_tune_then_run_what_it_says(call: Call, model: Path, device: str, tmp_path: Path) -> None:
    """One small kernel: kept, found done by the next tune, and used by the command it names."""
    cache = tmp_path / "a cache.sqlite"
    only = ("--level", "fast", "--kernel", "argmax")
    arguments = ("tune", model, *only, "--device", device, "--cache", cache)
    first = call(*arguments)
    assert first.code == 0
    assert re.search(r"^tuned 1 kernels in \d+ s \(\d+ trials\): decode", first.out)
    assert f"kept in {cache}; next: clkiln run " in first.out
    assert call(*arguments).out.startswith("nothing to do: all 1 kernels")
    following = shlex.split(first.out.partition("; next: ")[2])
    assert following[:2] == ["clkiln", "run"]
    answer = call(*following[1:], "-n", 2, "--json")
    untuned = {line.split()[0] for line in json.loads(answer.out)["fallbacks"]}
    assert "argmax" not in untuned
    assert "gemv" in untuned


# -- report ----------------------------------------------------------------------------------------


def test_report_without_a_cache(call: Call, cache_dir: Path, device: str, tmp_path: Path) -> None:
    for arguments in ([], ["--device", device], [tmp_path / "nothing.sqlite"]):
        result = call("report", *arguments)
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("error: ")
        assert len(result.err.splitlines()) == 1
    assert "clkiln tune MODEL" in call("report").err
    assert list(cache_dir.iterdir()) == []


def test_report_needs_no_device(
    call: Call, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clk_report_caches.tuned(cache_dir / "far-away.sqlite")
    monkeypatch.setattr("clkiln.runtime.device.list_devices", list)
    result = call("report")
    assert (result.code, result.err) == (0, "")
    assert clk_report_caches.INFO["name"] in result.out
    [data] = json.loads(call("report", "--json").out)
    assert data["path"] == str(cache_dir / "far-away.sqlite")


def test_report_as_a_page(call: Call, tmp_path: Path) -> None:
    file, page = clk_report_caches.tuned(tmp_path / "a.sqlite"), tmp_path / "page.html"
    result = call("report", file, "--html", page)
    assert (result.code, result.out) == (0, "")
    assert result.err == f"wrote {page}\n"
    assert page.read_text(encoding="utf-8").lstrip().startswith("<!DOCTYPE html>")
    result = call("report", file, "--html", tmp_path / "no" / "folder" / "page.html")
    assert result.code == 1
    assert "--debug shows where" not in result.err


# -- pull ------------------------------------------------------------------------------------------


def test_pull_of_what_is_there(call: Call, model: Path) -> None:
    assert call("pull", model) == Result(0, f"{model}\n", "")
    data = json.loads(call("pull", model, "--json").out)
    assert data == {"model": str(model), "path": str(model), "bytes": model.stat().st_size}


def test_pull_of_what_nobody_knows(call: Call) -> None:
    result = call("pull", "smollm3-135m")
    assert (result.code, result.out) == (1, "")
    assert re.search(r"unknown model 'smollm3-135m'; did you mean smollm2-135m\?", result.err)


# -- a process of its own --------------------------------------------------------------------------


def test_a_real_process(model: Path) -> None:
    for arguments, code in ((["--version"], 0), (["cook"], 2), (["run", "no.gguf", "hi"], 1)):
        process = clk_cli.start(*arguments)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert bool(out) == (code == 0)
        assert bool(err) == (code != 0)


def test_a_device_that_is_not_there_has_a_cache_path(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = clk_devices.numbered({"name": "Acme 1000"})
    monkeypatch.setattr("clkiln.runtime.device.list_devices", lambda: devices)
    assert call("cache", "path").out == f"{cache_file('Acme 1000', 'Acme OpenCL')}\n"
