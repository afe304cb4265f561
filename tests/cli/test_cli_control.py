"""What files from elsewhere say is printed without a character that steers a terminal."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import clk_engine
from clk_cli import Result
from clkiln.cache.exchange import write_export
from clkiln.cache.learnt import FactRow, Learnt
from clkiln.cache.rows import DriverRow
from clkiln.cli import app, common
from clkiln.errors import DeviceError, UnsupportedOperation
from clkiln.harness.rules import RULES
from clkiln.kernels.rules import Ban, Rules

Call = Callable[..., Result]
#: Sets the title (ECMA-48's OSC, in 7 bits and in 8), clears the line, goes back to its start.
EVIL = "\x1b]0;mine\x07 \x9d0;mine\x9c \x1b[2K\rfine\x7f"
STEERING = {chr(code) for code in (*range(32), *range(127, 160))} - {"\n", "\t"}


def steers(*results: Result) -> list[str]:
    return sorted(STEERING & set("".join(result.out + result.err for result in results)))


@pytest.fixture
def evil(call: Call, device: str, tmp_path: Path, cache_dir: Path) -> str:
    """Imports an export by somebody who would like to steer the terminal."""
    info, stamp = clk_engine.a_device().info, "2026-01-01T00:00:00Z"
    ban = Ban(EVIL, since=EVIL, by="user")
    rules = Rules({("gemv", "image"): ban}, {("gemv k=1", EVIL): ban}, {"gemm": "buffer"})
    other = {**info.as_dict(), "driver_version": EVIL}
    learnt = Learnt(
        (DriverRow(info.driver_key, info.as_dict(), stamp), DriverRow("another", other, stamp)),
        facts=(FactRow(RULES, info.driver_key, rules.as_dict(), stamp),),
    )
    write_export(tmp_path / "x.jsonl", learnt)
    assert call("cache", "import", tmp_path / "x.jsonl", "--device", device).code == 0
    return device


def test_what_was_imported_steers_no_terminal(call: Call, evil: str) -> None:
    for words, says in (
        ("cache rules", "mine"),
        ("cache info", "mine"),
        ("cache pin gemv=image", "is banned ("),
        ("kernels gemv", "mine"),
        ("cache verify", "mine"),
        ("report", "mine"),
    ):
        result = call(*words.split(), "--device", evil)
        assert says in result.out + result.err, words
        assert steers(result) == [], words
    result = call("cache", "rules", "--device", evil, "--json")
    assert steers(result) == []
    assert json.loads(result.out)["variants"][0]["reason"] == EVIL, "data is as it was"


def test_every_way_to_say_something(capsys: pytest.CaptureFixture[str]) -> None:
    common.warn(EVIL)
    common.note(EVIL)
    common.echo(EVIL)
    common.wrapped(EVIL, f"{EVIL}\n{EVIL} " * 9)
    common.print_json({EVIL: [EVIL]})
    common.print_json_line(EVIL)
    for error in (
        DeviceError(EVIL),
        ValueError(EVIL),
        FileNotFoundError(2, EVIL, EVIL),
        UnsupportedOperation(EVIL, [EVIL, EVIL]),
    ):
        app._fail(error, 1, debug=False)
    app.WarningHandler().emit(logging.LogRecord("x", logging.WARNING, "", 0, EVIL, (), None))
    out, err = capsys.readouterr()
    assert out.count("fine") > 10 and err.count("fine") > 6
    assert steers(Result(0, out, err)) == []


def test_tabs_and_lines_stay(capsys: pytest.CaptureFixture[str]) -> None:
    common.note("a\tb\nc ü 你")
    assert capsys.readouterr().err == "a\tb\nc ü 你\n"
