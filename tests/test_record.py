"""The page that a recorded run leaves: what ran, and how it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest

def test_good(): pass
def test_bad(): assert False
@pytest.mark.skip(reason="why not")
def test_not(): pass
@pytest.fixture
def broken(): raise RuntimeError("set-up")
def test_broken(broken): pass
"""


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two"])
def test_outcomes_are_counted_by_file(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    pytester.makepyfile(test_one=TESTS, test_two="def test_fine(): pass")
    page = Path(pytester.path, "page.md")
    # A run of its own must not take over this one's settings.
    support = str(Path(__file__).parent / "support")
    pytester.makeini(f"[pytest]\npythonpath = {support}")
    record = ("-p", "clk_record", "--record", str(page), *options)
    pytester.runpytest_subprocess(*record)
    text = page.read_text()
    assert "| test_one.py | 1 | 2 | 1 |" in text
    assert "| test_two.py | 1 | 0 | 0 |" in text
    assert "| **all** | 2 | 2 | 1 |" in text
    assert ", commit " in text
    assert "stopped" not in text
    if options:
        return
    pytester.runpytest_subprocess(*record, "--exitfirst")
    assert "stopped before its end" in page.read_text()
