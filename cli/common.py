"""Options that commands share, and the way they write."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import CacheError, UsageError
from ..units import three_digits
from . import completers
from .values import FilePath, Text

F = TypeVar("F", bound=Callable[..., Any])

#: Columns of what is printed as text.
WIDTH = 80
#: Every command answers to both.
CONTEXT = {"help_option_names": ["-h", "--help"]}


def shared(*names: str) -> Callable[[F], F]:
    """Add the options called ``names``, and ``--debug``, which every command has."""

    def add(function: F) -> F:
        for name in reversed((*names, "debug")):
            function = OPTIONS[name](function)
        return function

    return add


def _ignore(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """``--debug`` is read where errors are caught; here it only has to be allowed."""


#: The options that several commands have; :func:`shared` adds them.
OPTIONS: dict[str, Callable[[Any], Any]] = {
    "device": click.option(
        "--device",
        metavar="DEVICE",
        type=Text(),
        shell_complete=completers.devices,
        help="Index, part of the name, PLATFORM:NAME, gpu or cpu (see clkiln devices).",
    ),
    "cache": click.option(
        "--cache",
        type=FilePath(),
        help="Cache file to use instead of the device's own.",
    ),
    "json": click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    "variant": click.option(
        "--variant",
        multiple=True,
        metavar="[OP=]KIND",
        shell_complete=completers.variants,
        help="Force buffer or image kernels: all that have them, or one operation's.",
    ),
    "limits": click.option(
        "--limits",
        multiple=True,
        metavar="NAME|FILE",
        type=Text(),
        shell_complete=completers.limits,
        help="Pretend that the device is a smaller one: local-32k, no-images, small, ...",
    ),
    "quantize": click.option(
        "--quantize",
        type=click.Choice(["q4_0", "q8_0"]),
        help="Quantise matrices of floats so while they are loaded.",
    ),
    "debug": click.option(
        "--debug", is_flag=True, expose_value=False, callback=_ignore, help="Show tracebacks."
    ),
}


def model_argument(function: F) -> F:
    """The argument MODEL."""
    return click.argument("model", shell_complete=completers.models)(function)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    click.echo(_json(data, indent=2))


def print_json_line(data: Any) -> None:
    """One JSON document on one line of standard output, at once."""
    click.echo(_json(data))


#: What a model made up, or a file from elsewhere says, shall not steer a terminal: these characters
#: do. Those of the first range JSON's writer has escaped already.
_CONTROLS = (*range(32), *range(127, 160))
_ESCAPED = {code: f"\\u{code:04x}" for code in range(127, 160)}
#: Beside tab and line breaks, in an answer.
_UNSEEN = {code: "�" for code in _CONTROLS if chr(code) not in "\t\n\r"}
#: In a message nothing goes back to the start of a line, either.
_UNSEEN_IN_MESSAGES = {**_UNSEEN, ord("\r"): " "}


def _json(data: Any, **layout: Any) -> str:
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, **layout)
    return text.translate(_ESCAPED)


def echo(text: object = "", *, err: bool = False) -> None:
    """Print lines of text in which no character steers a terminal: names and reasons may come from
    files of other people."""
    click.echo(str(text).translate(_UNSEEN_IN_MESSAGES), err=err)


def say(piece: str) -> None:
    """A piece of an answer on standard output, at once; in a pipe it goes through unchanged."""
    click.echo(piece.translate(_UNSEEN) if sys.stdout.isatty() else piece, nl=False)


def wrapped(start: str, text: str, *, err: bool = False) -> None:
    """``text`` behind ``start`` in lines of 80 columns, the further ones under the first."""
    room = WIDTH - len(start)
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    for index, line in enumerate(lines):
        echo((start if index == 0 else " " * len(start)) + line, err=err)


def alone(option: str, **others: object) -> None:
    """Raise :class:`~clkiln.errors.UsageError` if one of ``others`` was given with ``option``."""
    for name, value in others.items():
        if value:
            other = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} goes without {other}")


def confirmed(question: str) -> bool:
    """Whether a person agrees. Raises :class:`UsageError` where nobody is there to ask."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        # No Ctrl-C: standard input ended before there was an answer.
        raise UsageError("nobody there to confirm it: add --yes") from None


def warn(text: str) -> None:
    echo(f"warning: {text}", err=True)


def note(text: str) -> None:
    """Something worth knowing that is no result: to standard error."""
    echo(text, err=True)


def is_terminal() -> bool:
    """Whether progress on standard error is seen by a person."""
    return sys.stderr.isatty()


def rate(value: float | None) -> str:
    """Tokens per second with three significant digits, as people read them."""
    if value is None:
        return "-"
    return three_digits(value)


def cache_path(device: str | None, cache: Path | None) -> Path:
    """The file of ``--cache``, else the one of the device; it need not exist."""
    if cache is not None:
        return cache
    from ..cache.paths import cache_file
    from ..runtime.device import select_device, selector_from_environment

    info = select_device(device or selector_from_environment()).info
    return cache_file(info.name, info.platform)


def existing_cache(device: str | None, cache: Path | None) -> Path:
    """As :func:`cache_path`; raises :class:`~clkiln.errors.CacheError` if it is not there."""
    path = cache_path(device, cache)
    if not path.exists():
        raise CacheError(f"there is no cache file {path}: nothing was tuned or run yet")
    return path
