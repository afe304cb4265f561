"""The report as one HTML page that holds all it needs: no network, no server, no other file.

A cache file may come from anywhere, so three things stand between its texts and the reader's
browser: the template escapes them, the plots' texts are escaped for plotly, and the page's content
security policy runs the two scripts whose hashes it names and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ..errors import ClkilnError
from . import text as write
from .figures import figures
from .model import Report

_ROOM = Path(__file__).parent


def write_html(reports: Sequence[Report], path: str | os.PathLike[str]) -> None:
    """Write one page with a section for each report. A page that is there is replaced at once.

    Raises :class:`ClkilnError` if plotly is not installed or ``path`` cannot be written.
    """
    _replace(Path(path), page(reports))


def page(reports: Sequence[Report]) -> str:
    """The page's text. Raises :class:`ClkilnError` if plotly is not installed."""
    scripts = {"plotly": _plotly_js(), "page": _asset("page.js")}
    template = _environment().get_template("page.html")
    return template.render(
        reports=reports,
        figures=figures,
        style=Markup(_asset("page.css")),
        scripts={name: Markup(script) for name, script in scripts.items()},
        policy=_policy(scripts.values()),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_ROOM),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        code=_code,
        day=write.day,
        error=write.error,
        scope=write.check_scope,
        verdict=write.verdict,
        duration=partial(write.duration, micro="µs"),
        factor=write.factor,
        parameters=write.parameters,
        percent=write.percent,
        rate=write.rate,
        size=write.size,
        tokens=write.tokens,
    )
    return environment


def _code(text: str) -> Markup:
    """``text`` escaped, and what stands between backticks set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _policy(scripts: Iterable[str]) -> str:
    """A content security policy: these scripts and no other, and no request to anywhere."""
    hashes = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)
    rest = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:"
    return f"{rest}; script-src {allowed}"


def _plotly_js() -> str:
    try:
        offline = import_module("plotly.offline")
    except ImportError as error:
        raise ClkilnError(
            "the HTML report needs plotly, which is not installed: pip install 'clkiln[report]'"
        ) from error
    return str(offline.get_plotlyjs())


def _asset(name: str) -> str:
    return (_ROOM / name).read_text(encoding="utf-8")


def _replace(path: Path, text: str) -> None:
    """Write beside ``path`` and move there, so that no reader ever meets half a page."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A path that is not UTF-8 shall not cost the whole report.
        draft.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ClkilnError(f"cannot write the report to {path}: {error.strerror}") from error
