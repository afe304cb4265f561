"""The tables in the terminal: complete, within the width, and harmless."""

from __future__ import annotations

import io
import random
import re
from pathlib import Path

import pytest
from rich.console import Console

from clk_report_caches import DRIVER, INFO, OLD_DRIVER, WORKLOADS, search, tuned
from clkiln.cache.rows import DriverRow, RunRow, TrialRow
from clkiln.cache.store import Store
from clkiln.reports.data import collect
from clkiln.reports.model import Report
from clkiln.reports.terminal import render
from clkiln.reports.text import label


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an earlier driver, a run that did not end, and names that mean harm."""
    path = tmp_path_factory.mktemp("terminal") / "device.db"
    workload = str(next(iter(WORKLOADS)))
    with Store.open(path) as store:
        store.put_driver(DriverRow(OLD_DRIVER, INFO | {"driver_version": "2.9"}))
        search(store, workload, 9e-5, rng=random.Random(1), trials=3, driver=OLD_DRIVER)
    tuned(path, trials=6)
    with Store.open(path) as store:
        store.start_run(RunRow("[red]evil[/red]\x1b[2J\x1b]0;title\x07.gguf", "wide", DRIVER))
        store.add_trial(TrialRow("[bold]op n=\x1b[31m1", DRIVER, "d", "{}", "crash"))
    return path


def _printed(report: Report, *, width: int = 80, **options) -> str:
    file = io.StringIO()
    render(report, Console(file=file, width=width, **options))
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(path: Path, width: int) -> None:
    printed = _printed(collect(path), width=width)
    assert max(map(len, printed.splitlines())) <= width


def test_a_pipe_gets_no_control_sequences(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    printed = _printed(collect(path))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", printed)


def test_nor_does_a_terminal_from_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = _printed(collect(path), force_terminal=True, color_system="standard")
    assert "\x1b[1m" in coloured
    plain = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert "\x1b" not in plain and "\x07" not in plain
    assert plain == _printed(collect(path))
    assert "\x1b[31m1" not in coloured


def test_no_color_is_heeded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    printed = _printed(collect(path), force_terminal=True, color_system="standard")
    codes = {code for codes in re.findall(r"\x1b\[([\d;]*)m", printed) for code in codes.split(";")}
    assert codes <= {"0", "1", "2"}  # bold and dim are no colours


def test_it_prints_where_only_ascii_can(path: Path) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    render(collect(path), Console(file=file, width=80))
    file.flush()
    assert b"gemv" in raw.getvalue()


def test_everything_is_there(path: Path) -> None:
    report = collect(path)
    printed = _printed(report, width=200)
    assert INFO["name"] in printed and str(path) in printed
    assert "[bold]op n=?[31m1" in printed and "[red]evil[/red]" in printed
    for workload in WORKLOADS:
        (line,) = re.findall(
            rf"^{re.escape(label(str(workload)))} .*x .*6 .*$", printed, re.MULTILINE
        )
        assert re.search(r"\d% (mem|arith)", line) and re.search(r"buffer|image", line)
    for status, number in report.drivers[0].totals.outcomes.items():
        assert re.search(rf"^{status} +{number} ", printed, re.MULTILINE)
    for text in ("14.2 -> 61.3", "not ended", "2 min 52 s", "an earlier driver", "2 binaries"):
        assert text in printed


def test_the_filter_adds_the_winning_parameters(path: Path) -> None:
    everything, one = collect(path), collect(path, kernel="argmax")
    assert "Winning parameters" not in _printed(everything)
    printed = _printed(one)
    assert "Winning parameters" in printed and "gemv" not in printed
    assert re.search(r"argmax n=49152 +(buffer|image): rows=\d wg=\d+ +[\d.]+ GB/s", printed)


def test_an_empty_file_names_the_next_command(tmp_path: Path) -> None:
    Store.open(tmp_path / "empty.db").close()
    printed = _printed(collect(tmp_path / "empty.db"))
    assert "Nothing was tuned yet: run `clkiln tune MODEL`." in printed
