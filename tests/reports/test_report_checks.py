"""What a report says of correctness: the latest check, bans and pins, in every form."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clk_cache import json_values, quick
from clk_report_caches import CHECK, DRIVER, tuned
from clkiln.cache.store import Store
from clkiln.reports.checks import check_reports, rule_reports
from clkiln.reports.data import collect
from clkiln.reports.html import page
from clkiln.reports.model import Report
from clkiln.reports.terminal import render

NAME = f"check:{'5e' * 32}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return collect(tuned(tmp_path_factory.mktemp("checked") / "x.sqlite", trials=3))


def shown(report: Report) -> str:
    text = io.StringIO()
    render(report, Console(file=text, width=80))
    return text.getvalue()


def test_the_check_and_the_rules_are_read(report: Report) -> None:
    (check,) = report.drivers[0].checks
    assert (check.model, check.ok, check.compared, check.launches) == (
        "smollm2-135m",
        True,
        1080,
        1104,
    )
    assert (check.same, check.logits_error) == (True, 1.3e-06)
    assert [(o.op, o.worst, o.allowed) for o in check.operations] == [
        ("gemv", 1.1e-06, 2e-05),
        ("argmax", 0.0, 0.0),
    ]
    assert [(r.kind, r.what, r.by) for r in report.drivers[0].rules] == [
        ("banned", "gemv=image", "check"),
        ("pinned", "gemm=buffer", "user"),
    ]
    assert json.loads(json.dumps(report.as_json()))["drivers"][0]["checks"][0]["compared"] == 1080


def test_terminal_and_page_show_them(report: Report) -> None:
    text = shown(report)
    assert all(len(line) <= 80 for line in text.splitlines())
    markup = page([report])
    for part in ("1.1e-06", "2.0e-05", "gemv=image", "3 of 960 not finite", "gemm=buffer"):
        assert part in text and part in markup, part
    flat = " ".join(text.split())
    assert "1080 of 1104 launches compared; 3 repeats, the same bits" in flat
    assert "right, 1 ban made" in flat and "right, 1 ban made" in markup


def test_what_is_wrong_is_said_in_both(tmp_path: Path) -> None:
    path = tuned(tmp_path / "x.sqlite", trials=1)
    with Store.open(path) as store:
        wrong = {**CHECK, "ok": False, "problem": "nothing is left that is right", "same": False}
        store.set_fact(NAME, wrong, driver=DRIVER)
    report = collect(path)
    for text in (" ".join(shown(report).split()), page([report])):
        assert "WRONG: nothing is left that is right" in text
        assert "NOT the same bits" in text


@quick
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(CHECK, json_values)), json_values)
def test_a_garbled_file_is_no_error(check: dict[str, Any], rules: Any) -> None:
    facts = {NAME: check, "check:other": 3, "rules": rules}
    (found,) = check_reports(facts)
    json.dumps(vars(found), default=vars, allow_nan=False)
    rule_reports(facts)
