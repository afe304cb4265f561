"""The page's promises: each is held by tests, and some of those are here."""

from __future__ import annotations

import ast
import random
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import clk_cache as kit
import clk_engine
from clkiln.cache.rows import BestRow
from clkiln.cache.store import Store

ROOT = Path(__file__).resolve().parents[2]
POSIX = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")


def test_each_promise_has_tests_that_exist() -> None:
    page = (ROOT / "docs/cache.md").read_text(encoding="utf-8")
    [section] = re.findall(r"^## Promises\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", section, re.MULTILINE)[2:]
    known = {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(rows) >= 7
    for promise, tests in rows:
        named = re.findall(r"`(\w+)`", tests)
        assert named, f"{promise}: no test"
        assert {*named} <= known, f"{promise}: {named}"


def _swap_programs(path: Path) -> None:
    """Each program under the key of the next one, digests and all."""
    with Store.open(path) as store:
        table = store._connection
        rows = table.execute("SELECT rowid, sha256, payload FROM binaries").fetchall()
        for (rowid, *_), (_, *other) in zip(rows, rows[1:] + rows[:1], strict=True):
            change = "UPDATE binaries SET sha256 = ?, payload = ? WHERE rowid = ?"
            table.execute(change, (*other, rowid))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-70_000])


def _overwrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    rng = random.Random(3)
    for at in range(4096, len(data), 4096 * 5):
        data[at : at + 4096] = rng.randbytes(min(4096, len(data) - at))
    path.write_bytes(data)


def _open_to_all(path: Path) -> None:
    path.chmod(0o666)


def _newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """A file that was used, and the answer of an engine with it."""
    path = clk_engine.used_cache(tmp_path_factory.mktemp("used") / "x.sqlite")
    return path.read_bytes(), _answer(path, pytest.fail)


def _answer(path: Path, warn: Callable[[str], object]) -> list[int]:
    with clk_engine.engine(cache=path, warn=warn) as engine:
        found = engine.generate("What is the capital of France?", temperature=0, max_tokens=3)
    return found.token_ids


@pytest.mark.parametrize(
    "hurt",
    [
        _swap_programs,
        *(
            pytest.param(h, marks=pytest.mark.long)
            for h in (_cut, _overwrite, _newer, _open_to_all)
        ),
    ],
)
def test_the_answer_is_the_same_whatever_the_file_holds(
    tmp_path: Path, used: tuple[bytes, list[int]], hurt: Callable[[Path], None]
) -> None:
    """Whole runs: what is lost is compiled again, and the tokens are the same."""
    path, warnings = tmp_path / "x.sqlite", kit.Warnings()
    path.write_bytes(used[0])
    path.chmod(0o600)
    hurt(path)
    assert _answer(path, warnings.append) == used[1] and len(used[1]) == 3
    assert [text for text in warnings if str(path) in text]


@POSIX
def test_kills_at_any_moment_lose_nothing_that_was_committed(tmp_path: Path) -> None:
    """One file through many kills: every trial and program reported is there, whole."""
    script = """
        import sys
        from pathlib import Path
        from clkiln.cache.rows import TrialRow
        from clkiln.cache.store import Store

        with Store.open(Path(sys.argv[1])) as store:
            store.set_fact("warm", 1)  # imports sqlite-utils
            print("open", flush=True)
            for i in range(10**6):
                name = f"{sys.argv[2]} {i}"
                store.put_binary(name, name.encode() * 900, label="", driver="")
                print("binary", name, flush=True)
                store.add_trial(TrialRow("w", "d", "g", name, "ok", 1.0))
                print("trial", name, flush=True)
    """
    path, rng = tmp_path / "x.sqlite", random.Random(11)
    reported: dict[str, set[str]] = {"binary": set(), "trial": set()}
    for turn in range(8):
        process = kit.start_python(script, path, turn)
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        lines = [process.stdout.readline()[:-1] for _ in range(turn)]
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        for line in lines + process.stdout.read().split("\n")[:-1]:
            kind, _, name = line.partition(" ")
            reported[kind].add(name)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    with Store.open(path, warn=pytest.fail) as store:
        assert {row.config for row in store.trials()} >= reported["trial"]
        keys = {row.key for row in store.binaries()}
        assert keys >= reported["binary"]
        assert store.get_binaries(keys) == {key: key.encode() * 900 for key in keys}
        assert store._connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    assert len(reported["trial"]) > 8 and len(reported["binary"]) > 8


def test_readers_never_see_half_an_entry(tmp_path: Path) -> None:
    """While another process replaces a program and a choice over and over."""
    script = """
        import sys, time
        from pathlib import Path
        from clkiln.cache.rows import BestRow
        from clkiln.cache.store import Store

        with Store.open(Path(sys.argv[1])) as store:
            for i in range(10**6):
                store.put_binary("key", bytes([i % 256]) * 50_000, label=str(i), driver="")
                config = str(i) * 3000
                store.set_best(BestRow("w", "d", "g", config, i + 1.0, i + 1.0))
                if not i:
                    print("open", flush=True)
                time.sleep(0.01)  # SQLite lets nobody in who comes while a writer never rests
    """
    path = tmp_path / "x.sqlite"
    process = kit.start_python(script, path)
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        seen: set[bytes] = set()
        end = time.monotonic() + 20
        with Store.open(path, write=False, warn=pytest.fail) as store:
            while len(seen) < 5 and time.monotonic() < end:
                [payload] = store.get_binaries(["key"]).values()
                assert payload == payload[:1] * 50_000
                seen.add(payload[:1])
                row = store.best("w", "d", "g")
                assert row is not None and isinstance(row, BestRow)
                assert row.config == str(int(row.time - 1)) * 3000 and row.default_time == row.time
        assert len(seen) >= 5
    finally:
        process.kill()
        process.communicate()
