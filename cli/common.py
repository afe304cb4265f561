"""Options that commands share, and the way they write."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def shared(*names: str) -> Callable[[F], F]:
    """Add the options called ``names``, and ``--debug``, which every command has."""

    def add(function: F) -> F:
        for name in reversed((*names, "debug")):
            function = _OPTIONS[name](function)
        return function

    return add


def _ignore(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """``--debug`` is read where errors are caught; here it only has to be allowed."""


_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "device": click.option(
        "--device",
        metavar="DEVICE",
        help="Index, part of the name, PLATFORM:NAME, gpu or cpu (see clkiln devices).",
    ),
    "cache": click.option(
        "--cache",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Cache file to use instead of the device's own.",
    ),
    "json": click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    "variant": click.option(
        "--variant",
        multiple=True,
        metavar="[OP=]KIND",
        help="Force buffer or image kernels: all that have them, or one operation's.",
    ),
    "debug": click.option(
        "--debug", is_flag=True, expose_value=False, callback=_ignore, help="Show tracebacks."
    ),
}


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


def note(text: str) -> None:
    """Something worth knowing that is no result: to standard error."""
    click.echo(text, err=True)


def is_terminal() -> bool:
    """Whether progress on standard error is seen by a person."""
    return sys.stderr.isatty()


def rate(value: float | None) -> str:
    """Tokens per second with three significant digits, as people read them."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
