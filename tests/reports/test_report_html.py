"""The HTML page: complete, self-contained, and safe to open whoever wrote the cache file."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from clk_report_caches import DRIVER, INFO, OLD_DRIVER, WORKLOADS, search, tuned
from clkiln.cache.rows import STATUSES, DriverRow, RunRow
from clkiln.cache.store import Store
from clkiln.errors import ClkilnError
from clkiln.reports import html
from clkiln.reports.data import collect
from clkiln.reports.figures import figures
from clkiln.reports.html import page, write_html
from clkiln.reports.model import Report
from clkiln.reports.text import label

EVIL = "</script><script>alert('x')</script><img src=//evil.example onerror=alert(1)>&amp;\"'"
PLOTLY = "/* plotly */"
_REAL_PLOTLY_JS = html._plotly_js
VOID = {"meta", "br", "img", "link"}


class Page(HTMLParser):
    """The page's elements in order, the text in each, and the elements that were not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.elements[index][2].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, "".join(text)) for name, attrs, text in self.elements if name == tag]

    def plots(self) -> dict[str, Any]:
        scripts = [(a["data-plot"], text) for a, text in self.all("script") if "data-plot" in a]
        return {str(name): json.loads(text) for name, text in scripts}


@pytest.fixture(autouse=True)
def light_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes in place of plotly's five megabytes."""
    monkeypatch.setattr(html, "_plotly_js", lambda: PLOTLY)


@pytest.fixture
def real_plotly(light_plotly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "_plotly_js", _REAL_PLOTLY_JS)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    path = tmp_path_factory.mktemp("html") / "device.db"
    with Store.open(path) as store:
        store.put_driver(DriverRow(OLD_DRIVER, INFO | {"driver_version": "2.9"}))
        workload = str(next(iter(WORKLOADS)))
        search(store, workload, 9e-5, rng=random.Random(1), trials=3, driver=OLD_DRIVER)
    return collect(tuned(path, trials=5))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A file whose every text tries to leave its place."""
    path = tmp_path_factory.mktemp("hostile") / "device.db"
    driver = f"{DRIVER}{EVIL}"
    with Store.open(path) as store:
        store.put_driver(DriverRow(driver, dict.fromkeys(INFO, EVIL)))
        store.set_fact("roof.read_bytes_per_s", 1e9, driver=driver)
        store.set_fact("roof.flops_per_s", 1e9, driver=driver)
        store.set_fact("speed:x", {"model": EVIL, "measured": EVIL}, driver=driver)
        store.start_run(RunRow(EVIL, EVIL, driver))
        for workload in (EVIL, f"argmax n=64 {EVIL}", str(next(iter(WORKLOADS)))):
            search(store, workload, 1e-3, rng=random.Random(1), trials=3, driver=driver)
    return collect(path)


def test_every_kernel_is_in_the_table_with_all_its_cells(report: Report) -> None:
    content = Page(page([report]))
    texts = " ".join(text for _, text in content.all("td"))
    for workload in WORKLOADS:
        assert label(str(workload)) in texts
    rows = sum(len(driver.kernels) for driver in report.drivers)
    tables = [attrs for attrs, _ in content.all("table") if attrs.get("class") == "sortable"]
    sortable = [attrs for attrs, _ in content.all("td") if "data-sort" in attrs]
    assert len(tables) == len(report.drivers)
    assert len(sortable) == 12 * rows


def test_the_tiles_say_what_matters(report: Report) -> None:
    content = Page(page([report]))
    names = [text for _, text in content.all("dt")]
    values = [text for _, text in content.all("dd")]
    tiles = dict(zip(reversed(names), reversed(values), strict=True))  # the first driver's win
    assert tiles["Decode"] == "61.3 tok/ssmollm2-135m"
    assert tiles["Measured roof"] == "28.0 GB/s120 GFLOP/s"
    assert tiles["Trials"].startswith(str(5 * len(WORKLOADS)))


def test_the_plots_hold_what_the_report_says(report: Report) -> None:
    plots = Page(page([report])).plots()
    assert set(plots) == {
        *(f"r0d0-{name}" for name in ("roof", "progress", "outcomes")),
        *(f"r0d1-{name}" for name in ("progress", "outcomes")),  # no roof was measured there
    }
    kernels = report.drivers[0].kernels
    *tuned_bars, default = plots["r0d0-roof"]["data"]
    for index, kernel in enumerate(kernels):
        assert kernel.roof
        assert [t["x"][index] for t in tuned_bars if t["x"][index]] == [kernel.roof.share]
        assert default["x"][index] == kernel.roof.default_share
        assert kernel.workload.split(" ")[0] in default["hovertext"][index]
    stacked = [trace["x"] for trace in plots["r0d0-outcomes"]["data"]]
    trials = [sum(numbers) for numbers in zip(*stacked, strict=True)]
    assert trials == [kernel.trials for kernel in kernels]
    for curve, kernel in zip(plots["r0d0-progress"]["data"], kernels, strict=True):
        assert curve["y"][0] == 1 and min(curve["y"]) == curve["y"][-1]
        assert len(curve["x"]) == len(curve["meta"]["seconds"]) == len(kernel.progress)


def test_every_plot_has_its_place_and_its_colours(report: Report) -> None:
    content = Page(page([report]))
    (style,) = [text for _, text in content.all("style")]
    light, dark = style.split("prefers-color-scheme: dark")
    places = [attrs["id"] for attrs, _ in content.all("div") if "id" in attrs]
    assert len(places) == len(set(places))
    for name, plot in content.plots().items():
        assert name in places
        for color in re.findall(r'"color": "(--[\w-]+)"', json.dumps(plot)):
            assert f"{color}:" in light and f"{color}:" in dark


def test_every_status_has_a_colour() -> None:
    style = Path(html.__file__).with_name("page.css").read_text(encoding="utf-8")
    for status in STATUSES:
        assert style.count(f"--{status.replace(' ', '-')}:") == 2


def test_hostile_texts_stay_texts(hostile: Report) -> None:
    content = Page(page([hostile]))
    assert content.open == []
    assert {tag for tag, _, _ in content.elements}.isdisjoint({"img", "iframe", "a", "link"})
    for _, attrs, _ in content.elements:
        assert not any(name.startswith("on") or name in ("src", "href") for name in attrs)
    programs = [text for attrs, text in content.all("script") if "data-plot" not in attrs]
    assert len(programs) == 2 and not any("alert" in text for text in programs)
    assert any(EVIL in text for _, text in content.all("td"))


def test_hostile_texts_stay_texts_in_plots_too(hostile: Report) -> None:
    drawn = figures(hostile.drivers[0])
    assert set(drawn) == {"roof", "progress", "outcomes"}

    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in texts(item)]
        if isinstance(value, list):
            return [text for item in value for text in texts(item)]
        return [value] if isinstance(value, str) else []

    found = texts(drawn)
    assert any("&lt;script&gt;" in text for text in found)
    for text in found:  # plotly shall see no markup but our own
        assert set(re.findall(r"<[^>]*>", text)) <= {"<b>", "</b>", "<br>"}


@pytest.mark.parametrize("kind", ["report", "hostile"])
def test_the_policy_lets_these_scripts_run_and_nothing_load(
    kind: str, request: pytest.FixtureRequest
) -> None:
    content = Page(page([request.getfixturevalue(kind)]))
    (policy,) = [a["content"] for a, _ in content.all("meta") if "http-equiv" in a]
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    programs = [text for attrs, text in content.all("script") if "data-plot" not in attrs]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in programs]
    assert rules["script-src"].split(" ") == [f"'sha256-{digest.decode()}'" for digest in digests]


@pytest.mark.usefixtures("real_plotly")
def test_plotly_is_in_the_page_once(report: Report, tmp_path: Path) -> None:
    offline = pytest.importorskip("plotly.offline")
    write_html([report, report], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count(offline.get_plotlyjs()) == 1
    programs = [text for a, text in Page(text).all("script") if "data-plot" not in a]
    assert programs[0] == offline.get_plotlyjs()  # nothing in it ends the element early


@pytest.mark.usefixtures("real_plotly")
def test_without_plotly_the_error_says_what_to_install(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ClkilnError, match=r"pip install 'clkiln\[report\]'"):
        write_html([report], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_several_files_share_a_page(report: Report, hostile: Report, tmp_path: Path) -> None:
    Store.open(tmp_path / "empty.db").close()
    content = Page(page([report, hostile, collect(tmp_path / "empty.db")]))
    assert len(content.all("section")) == 3
    assert next(text for _, text in content.all("h2")) == INFO["name"]
    assert {name[:2] for name in content.plots()} == {"r0", "r1"}
    (hint,) = [text for a, text in content.all("p") if a.get("class") == "hint"]
    assert hint == "Nothing was tuned yet: run clkiln tune MODEL."


def test_earlier_drivers_are_folded_away(report: Report) -> None:
    (details,) = [text for _, text in Page(page([report])).all("details")]
    assert "Earlier driver: Portable Computing Language 2.9" in details


def test_a_page_is_replaced_whole_or_not_at_all(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.html"
    write_html([report], target)
    first = target.read_bytes()

    def broken(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", broken)
        with pytest.raises(ClkilnError, match=r"report\.html: No space left"):
            write_html([], target)
    assert target.read_bytes() == first
    assert list(tmp_path.iterdir()) == [target]
    write_html([], target)
    assert target.read_bytes() != first


def test_a_folder_that_is_not_there_is_an_error(report: Report, tmp_path: Path) -> None:
    with pytest.raises(ClkilnError, match="cannot write the report"):
        write_html([report], tmp_path / "nowhere" / "report.html")


def test_a_path_that_is_not_utf8_costs_nothing(report: Report, tmp_path: Path) -> None:
    write_html([replace(report, path="/home/\udcff/device.db")], tmp_path / "report.html")
    assert r"\udcff" in (tmp_path / "report.html").read_text(encoding="utf-8")
