"""Several processes at one file, killed ones among them, and what a warm start imports."""

from __future__ import annotations

import signal
import sqlite3
import time
from pathlib import Path

import pytest

import clk_cache as kit
from clkiln.cache.rows import DriverRow
from clkiln.cache.store import Store


def _check(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    connection.close()


def test_a_warm_start_imports_the_standard_library_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    kit.fill(path)
    script = """
        import sys
        from pathlib import Path
        from clkiln.cache.rows import DriverRow
        from clkiln.cache.store import Store

        def heavy():
            return {"sqlite_utils", "numpy", "platformdirs", "optuna"} & set(sys.modules)

        with Store.open_or_memory(Path(sys.argv[1]), sys.exit) as store:
            assert store.best("w1", "driver", "digest")
            assert store.best_of_other_driver("w1", "digest", "other")
            assert len(store.get_binaries(f"key {i}" for i in range(20))) == 11
            assert store.fact("quick") == 12 and store.trials(workload="w1") and store.info()
            store.put_driver(DriverRow("driver", {"name": "a device", "units": 2}))
            assert not heavy(), heavy()
            store.set_fact("new", 1)
            assert "sqlite_utils" in heavy(), heavy()
    """
    process = kit.start_python(script, path)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def test_eight_processes_meet_at_an_empty_path(tmp_path: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        import sqlite_utils
        from clkiln.cache.rows import DriverRow, TrialRow
        from clkiln.cache.store import Store

        print("ready", flush=True)
        start = float(sys.stdin.readline())
        for n, path in enumerate(sys.argv[2:]):
            time.sleep(max(0, start + n / 4 - time.time()))
            began = time.monotonic()
            with Store.open_or_memory(Path(path), sys.exit) as store:
                assert store.persistent
                store.put_driver(DriverRow("driver", {"name": "a device"}))
                store.put_binary("key", b"payload", label="", driver="driver")
                store.add_trial(TrialRow("w", "driver", "digest", sys.argv[1], "ok"))
            assert time.monotonic() - began < 10
    """
    paths = [tmp_path / str(n) / "folder" / "x.sqlite" for n in range(3)]
    processes = [kit.start_python(script, i, *paths) for i in range(8)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    start = time.time() + 0.2
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{start}\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    for path in paths:
        _check(path)
        with Store.open(path, write=False, warn=pytest.fail) as store:
            assert sorted(row.config for row in store.trials()) == sorted(map(str, range(8)))
            assert store.get_binaries(["key"]) == {"key": b"payload"}
            assert [(row.driver, row.info) for row in store.drivers()] == [
                ("driver", {"name": "a device"})
            ]


def test_processes_that_change_one_fact_lose_nothing(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from clkiln.cache.store import Store

        with Store.open_or_memory(Path(sys.argv[1]), sys.exit) as store:
            store.set_fact(sys.argv[2], 0)
            print("ready", flush=True)
            sys.stdin.readline()
            for i in range(20):
                mine = f"{sys.argv[2]}.{i}"
                store.update_fact("bans", lambda before: [*(before or []), mine], driver="d")
    """
    path = tmp_path / "x.sqlite"
    processes = [kit.start_python(script, path, i) for i in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.communicate("go\n", timeout=60) == ("", "")
        assert process.returncode == 0
    with Store.open(path, write=False, warn=pytest.fail) as store:
        kept = store.fact("bans", driver="d")
    assert sorted(kept) == sorted(f"{p}.{i}" for p in range(3) for i in range(20))


@pytest.mark.parametrize("kept", [0, 1, 17, 60])
def test_a_kill_loses_nothing_that_was_reported(tmp_path: Path, kept: int) -> None:
    script = """
        import sys
        from pathlib import Path
        from clkiln.cache.rows import TrialRow
        from clkiln.cache.store import Store

        with Store.open(Path(sys.argv[1])) as store:
            print("open", flush=True)
            for i in range(10**6):
                store.put_binary(f"key {i % 3}", bytes(5000 * (i % 3)), label="", driver="")
                print(store.add_trial(TrialRow("w", "d", "g", f"{i}", "ok", i)), flush=True)
    """
    path = tmp_path / "x.sqlite"
    process = kit.start_python(script, path)
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    reported = [int(process.stdout.readline()) for _ in range(kept)]
    process.kill()
    # Not communicate(), which does not see what readline() has read ahead.
    reported += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.communicate()

    with Store.open(path, warn=pytest.fail) as store:
        ids = [row.id for row in store.trials()]
        # What was committed and not yet reported may be there, too: one row at most.
        assert ids[: len(reported)] == reported and len(ids) - len(reported) in (0, 1)
        keys = [row.key for row in store.binaries()]
        assert set(store.get_binaries(keys)) == set(keys)
        assert store.add_trial(kit.some_trial()) == len(ids) + 1
    _check(path)


@pytest.mark.parametrize("write", [True, False])
def test_a_transaction_cut_short_is_rolled_back(tmp_path: Path, write: bool) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        from clkiln.cache.store import Store
        from clkiln.cache.transaction import immediate

        store = Store.open(Path(sys.argv[1]))
        store._connection.execute("PRAGMA cache_size = 1")  # pages reach the file before the end
        with immediate(store._connection):
            store._connection.execute("UPDATE trials SET message = hex(zeroblob(9000))")
            store._connection.execute("DELETE FROM binaries")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "x.sqlite"
    kit.fill(path)
    with Store.open(path) as store:
        before = kit.everything(store)
    size = path.stat().st_size
    process = kit.start_python(script, path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert path.with_name("x.sqlite-journal").exists() and path.stat().st_size != size
    with Store.open(path, write=write, warn=pytest.fail) as store:
        after = kit.everything(store)
    assert {**after, "info": 0} == {**before, "info": 0}
    _check(path)


@pytest.mark.parametrize("written", [0, 1, 2, 5])
def test_a_first_migration_cut_short_is_done_again(tmp_path: Path, written: int) -> None:
    script = """
        import os, signal, sqlite3, sys
        from pathlib import Path
        from clkiln.cache import schema
        from clkiln.cache.store import Store

        # The last statement before COMMIT kills; the small cache makes the journal reach the disk.
        spill = ("PRAGMA cache_size = 1", "CREATE TABLE t AS SELECT randomblob(90000)")
        last = (*spill, "CREATE TABLE u AS SELECT kill()")
        schema.MIGRATIONS = (*schema.MIGRATIONS, last)
        connect = sqlite3.connect

        def connect_with_kill(*args, **kwargs):
            connection = connect(*args, **kwargs)
            connection.create_function("kill", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
            return connection

        sqlite3.connect = connect_with_kill
        Store.open(Path(sys.argv[1]))
    """
    path = tmp_path / "x.sqlite"
    process = kit.start_python(script, path)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -signal.SIGKILL
    assert path.with_name("x.sqlite-journal").exists()
    # COMMIT writes the pages in order; these had been written when the process died.
    kit.fill(tmp_path / "whole.sqlite")
    path.write_bytes((tmp_path / "whole.sqlite").read_bytes()[: 4096 * written])
    with Store.open_or_memory(path, pytest.fail) as store:
        assert store.persistent
        assert set(store.info()["rows"].values()) == {0}
        store.put_driver(DriverRow("driver", {}))
    _check(path)
