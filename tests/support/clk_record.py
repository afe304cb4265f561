"""A pytest plugin: ``--record FILE`` writes what a run did as a page that can be committed.

By file: how many tests passed, failed and were skipped, and what they took. So that others see what
was run where, and when: the long tests need more time and devices than every change can be given.
"""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections import Counter
from pathlib import Path

import pytest

HEAD = """# The long tests

`make test-long RECORD=docs/long-tests.md` runs the tests that take minutes, or need what is not
everywhere, and writes this page. A skipped test says why with `PYTEST_ARGS=-rs`.
"""
ROOT = Path(__file__).parents[2]


class Record:
    """Counts the outcomes of a session by file."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.outcomes: dict[str, Counter[str]] = {}
        self.seconds: Counter[str] = Counter()
        self.collected = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Of a run in several processes: each has collected them all."""
        self.collected = len(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        self.seconds[file] += report.duration
        # A test is one call; a set-up or tear-down counts only where it failed or skipped.
        if report.when == "call" or not report.passed:
            self.outcomes.setdefault(file, Counter())[report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        self.target.write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        total: Counter[str] = sum(self.outcomes.values(), Counter())
        lines = [HEAD, *_where()]
        if total.total() < self.collected:
            ran = f"{total.total()} of {self.collected} tests ran"
            lines.append(f"- stopped before its end: {ran}")
        lines += ["", "| file | passed | failed | skipped | seconds |"]
        lines.append("| --- | ---: | ---: | ---: | ---: |")
        lines += [_row(file, n, self.seconds[file]) for file, n in sorted(self.outcomes.items())]
        lines.append(_row("**all**", total, self.seconds.total()))
        return "\n".join(lines) + "\n"


def _row(name: str, counts: Counter[str], seconds: float) -> str:
    numbers = " | ".join(str(counts[kind]) for kind in ("passed", "failed", "skipped"))
    return f"| {name} | {numbers} | {seconds:.0f} |"


def _where() -> list[str]:
    """When, of which commit, and on what."""
    now = datetime.datetime.now(datetime.UTC)
    return [
        f"- {now:%Y-%m-%d %H:%M} UTC, commit {_commit()}",
        f"- Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        *(f"- {device}" for device in _devices()),
    ]


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def _devices() -> list[str]:
    from clkiln.runtime.device import list_devices

    return [f"{d.info.name} ({d.info.platform_version.strip()})" for d in list_devices()]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, metavar="FILE", help="write outcomes by file there")


def pytest_configure(config: pytest.Config) -> None:
    target = config.getoption("--record")
    # The processes of a parallel run report to the first one.
    if target is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(target), "clk-record")
