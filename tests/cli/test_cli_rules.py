"""``clkiln cache ban|unban|pin|unpin|rules``, and who honours it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clk_engine
from clk_cli import Result
from clkiln.cache.store import Store

Call = Callable[..., Result]


@pytest.fixture
def rule(call: Call, device: str, tmp_path: Path) -> Callable[..., Result]:
    """``rule("ban", "gemv=image")`` on a cache file of the test's own."""

    def do(*arguments: object) -> Result:
        return call("cache", *arguments, "--device", device, "--cache", tmp_path / "x.sqlite")

    return do


def listed(rule: Callable[..., Result]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(rule("rules", "--json").out)
    return data


def test_a_ban_is_listed_and_taken_back(rule: Callable[..., Result]) -> None:
    assert rule("rules").out.startswith("nothing is banned or pinned")
    done = rule("ban", "gemv=image", "--reason", "garbage on Mondays")
    assert (done.code, done.err) == (0, "") and done.out.startswith("banned gemv=image on ")
    (row,) = listed(rule)["variants"]
    assert (row["op"], row["variant"], row["by"]) == ("gemv", "image", "user")
    assert row["reason"] == "garbage on Mondays" and row["since"]
    assert "garbage on Mondays (by hand, 20" in rule("rules").out
    assert rule("unban", "gemv=image").code == 0
    assert listed(rule)["variants"] == []
    again = rule("unban", "gemv=image")
    assert again.code == 2 and "is not banned" in again.err


def test_a_pin_is_listed_and_taken_back(rule: Callable[..., Result]) -> None:
    assert rule("pin", "gemm=image").code == 0
    assert listed(rule)["pins"] == {"gemm": "image"}
    assert "pinned  gemm=image" in rule("rules").out
    assert rule("unpin", "gemm").code == 0
    assert listed(rule)["pins"] == {}
    assert "is not pinned" in rule("unpin", "gemm=image").err


@pytest.mark.parametrize(
    ("before", "wrong", "says"),
    [
        ((), ("ban", "gemw=image"), "did you mean gemv?"),
        ((), ("ban", "gemv=imag"), "did you mean image?"),
        ((), ("ban", "gemv"), "write OP=VARIANT; gemv has buffer, image"),
        ((), ("unpin", "gemw"), "did you mean gemv?"),
        ((), ("ban", "roof_fma=buffer"), "leaves no variant of roof_fma"),
        (("ban", "gemv=image"), ("ban", "gemv=buffer"), "leaves no variant of gemv"),
        (("ban", "gemv=image"), ("pin", "gemv=image"), "clkiln cache unban gemv=image first"),
        (("pin", "gemv=image"), ("ban", "gemv=image"), "clkiln cache unpin gemv first"),
        (("pin", "gemv=image"), ("pin", "gemm=buffer"), "read the same ones"),
        (("ban", "gemv=image"), ("ban", "gemm=buffer"), "read the same ones"),
    ],
)
def test_what_makes_no_sense_is_refused(
    rule: Callable[..., Result], before: tuple[str, ...], wrong: tuple[str, ...], says: str
) -> None:
    assert not before or rule(*before).code == 0
    kept = listed(rule)
    result = rule(*wrong)
    assert result.code == 2 and says in result.err, result.err
    assert listed(rule) == kept


@pytest.mark.parametrize(
    "wrong",
    [
        ("unban", "gemv=image"),
        ("unpin", "gemv"),
        ("ban", "roof_fma=buffer"),
        ("pin", "argmax=image", "--limits", "no-images"),
    ],
)
def test_what_is_refused_makes_no_file(
    rule: Callable[..., Result], wrong: tuple[str, ...], tmp_path: Path
) -> None:
    assert rule(*wrong).code == 2
    assert not (tmp_path / "x.sqlite").exists()
    rule("ban", "gemv=image")
    with Store.open(tmp_path / "x.sqlite", write=False) as store:
        before = store.drivers()
    assert rule("unban", "gemm=image", "--limits", "no-images").code == 2
    with Store.open(tmp_path / "x.sqlite", write=False) as store:
        assert store.drivers() == before, "what an export would carry"


def test_an_import_leaves_shipped_bans_in_force(
    call: Call, device: str, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does a ban by hand, until it is taken back."""
    monkeypatch.setenv("CLKILN_SYSTEM_CACHE_DIR", str(tmp_path / "system"))
    here = ("--device", device)
    own = Path(call("cache", "path", *here).out.strip())
    other = tmp_path / "other.sqlite"
    call("cache", "ban", "gemm=image", *here, "--cache", other)
    call("cache", "ban", "gemv=image", *here, "--cache", tmp_path / "system" / own.name)
    assert call("cache", "export", tmp_path / "e", "--cache", other).code == 0
    assert call("cache", "import", tmp_path / "e", *here).code == 0
    call("cache", "ban", "embedding=image", *here)

    def banned() -> list[str]:
        rows = json.loads(call("cache", "rules", "--json", *here).out)["variants"]
        return [row["op"] for row in rows]

    assert banned() == ["embedding", "gemm", "gemv"]
    assert call("cache", "unban", "gemv=image", *here).code == 0
    assert banned() == ["embedding", "gemm"]


def test_what_a_tied_model_cannot_run_is_a_warning(
    call: Call, rule: Callable[..., Result], device: str, tmp_path: Path
) -> None:
    """Other models can; and the error of the one that can't names all that has part in it."""
    first, second = "embedding=image", "gemv=buffer"
    assert rule("pin", first).err == ""
    done = rule("pin", second)
    assert done.code == 0 and "whose output head is the embedding can't run" in done.err
    assert all(f"{each} is pinned" in done.err for each in (first, second))
    both = tmp_path / "both.jsonl"
    assert call("cache", "export", both, "--cache", tmp_path / "x.sqlite").code == 0
    took = call("cache", "import", both, "--cache", tmp_path / "y.sqlite", "--device", device)
    assert took.code == 0 and "whose output head is the embedding can't run" in took.err
    run = ("Hi", "-n", 2, "--device", device, "--cache", tmp_path / "x.sqlite")
    untied = call("run", clk_engine.model("llama2/q4_0"), *run)
    assert untied.code == 0, untied.err
    tied = call("run", clk_engine.model("smollm2/q4_1"), *run)
    assert tied.code == 1
    assert all(f"{each} is pinned" in " ".join(tied.err.split()) for each in (first, second))


def test_what_reads_other_weights_is_no_warning(
    call: Call, rule: Callable[..., Result], device: str, tmp_path: Path
) -> None:
    """Of a tied model the layers' weights and the embedding are different ones."""
    assert rule("pin", "gemm=buffer").err == rule("pin", "embedding=image").err == ""
    run = ("Hi", "-n", 2, "--device", device, "--cache", tmp_path / "x.sqlite")
    tied = call("run", clk_engine.model("smollm2/q4_1"), *run)
    assert tied.code == 0, tied.err


@pytest.mark.long
def test_runs_and_tuning_honour_them(
    call: Call, rule: Callable[..., Result], device: str, model: Path
) -> None:
    """The answer is the same and says what held; a tuning run counts no banned variant."""
    cache = ["--device", device, "--cache", clk_engine.own_cache(Path(listed(rule)["cache_file"]))]
    answer = ["run", model, "Hi", "--temp", 0, "-n", 4, "--verbose", *cache]
    plain = call(*answer)
    before = json.loads(call("tune", model, "--dry-run", "--json", *cache).out)
    rule("ban", "gemv=image")
    rule("pin", "gemm=buffer")
    ruled = call(*answer)
    assert (ruled.code, ruled.out) == (0, plain.out)
    after = json.loads(call("tune", model, "--dry-run", "--json", *cache).out)
    assert after["feasible"] < before["feasible"]
    for line in ("gemv=image is banned for this driver (by hand)", "gemm=buffer is pinned"):
        assert line in ruled.err and line not in plain.err


def test_kernels_says_what_is_banned(call: Call, device: str, cache_dir: Path) -> None:
    """Of the device's own cache file."""
    plain = call("kernels", "--device", device)
    assert "Banned" not in plain.out
    call("cache", "ban", "gemv=image", "--reason", "garbage on Mondays", "--device", device)
    listed = call("kernels", "--device", device)
    assert listed.out.startswith(plain.out)
    assert "gemv=image is banned for this driver (garbage on Mondays)" in listed.out
    assert "garbage" in call("kernels", "gemv", "--device", device).out
    assert "garbage" not in call("kernels", "gemm", "--device", device).out
    data = json.loads(call("kernels", "--device", device, "--json").out)
    assert data["rules"]["variants"][0]["reason"] == "garbage on Mondays"
