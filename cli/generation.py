"""Options of the commands that answer: how the model is loaded, and how an answer is drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from .common import OPTIONS
from .values import Number, Text

F = TypeVar("F", bound=Callable[..., Any])


def _gathered(name: str, *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Add ``options`` and hand their values to the command as one dictionary called ``name``."""

    def add(function: Any) -> Any:
        before = len(getattr(function, "__click_params__", ()))
        for option in reversed(options):
            function = option(function)
        added = function.__click_params__[before:]
        names = [parameter.name for parameter in added if parameter.expose_value]

        # wraps: click finds the options on the function that it is given.
        @functools.wraps(function)
        def gather(**values: Any) -> Any:
            return function(**{name: {key: values.pop(key) for key in names}, **values})

        return gather

    return add


#: Keywords of :meth:`Engine.stream` and :meth:`Engine.chat_stream`.
sampling = _gathered(
    "sampling",
    click.option(
        "-n", "--max-tokens", type=click.IntRange(1), metavar="N", default=512, show_default=True,
        help="The longest answer, in tokens.",
    ),
    click.option(
        "--temp", "--temperature", "temperature", type=Number(0), metavar="T",
        help="0 is greedy.  [default: the model's own, else 0.7]",
    ),
    click.option(
        "--top-k", type=click.IntRange(0), metavar="K",
        help="Keep the k likeliest tokens; 0: all.",
    ),
    click.option(
        "--top-p", type=Number(0, 1, min_open=True), metavar="P",
        help="Keep the likeliest tokens that reach P together; 1: all.",
    ),
    click.option(
        "--min-p", type=Number(0, 1), metavar="P",
        help="Keep tokens at least P times as likely as the likeliest; 0: all.",
    ),
    click.option(
        "--repeat-penalty", type=Number(0, min_open=True), metavar="R",
        help="Divide the logits of recent tokens by R; 1: off.",
    ),
    click.option(
        "--presence-penalty", type=Number(-2, 2), metavar="A", default=0.0,
        help="Lower the logits of tokens that were in the answer by A.",
    ),
    click.option(
        "--frequency-penalty", type=Number(-2, 2), metavar="A", default=0.0,
        help="Lower them by A for each time.",
    ),
    click.option(
        "--stop", multiple=True, metavar="TEXT", type=Text(),
        help="End the answer before TEXT; may be given again.",
    ),
    click.option("--seed", type=click.IntRange(0), metavar="N", help="Repeat a sampled answer."),
)  # fmt: skip

system_option = click.option(
    "--system", metavar="TEXT", help="A system message: how the model shall answer."
)

#: Keywords of :meth:`Engine.load`.
loading = _gathered(
    "loading",
    click.option(
        "-c", "--ctx-size", type=click.IntRange(1), metavar="N", help="Context in tokens."
    ),
    click.option(
        "--kv-dtype", type=click.Choice(["f32", "f16"]), default="f32", show_default=True,
        help="Keys and values: f16 takes half the memory, and rounds.",
    ),
    click.option(
        "--require-cache", is_flag=True, help="Fail if anything would compile or fall back."
    ),
    click.option(
        "--no-check", "check", flag_value=False, default=True,
        help="After a driver update, don't check the model once.",
    ),
    *(OPTIONS[name] for name in ("quantize", "device", "cache", "variant", "limits")),
)  # fmt: skip
