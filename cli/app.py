"""The ``clkiln`` program: finds the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from .. import __version__
from ..errors import ClkilnError, UnsupportedOperation
from .common import CONTEXT, echo, wrapped

#: Command -> what it does. The module of that name holds the click command ``command``.
COMMANDS = {
    "run": "Answer a prompt.",
    "chat": "Talk with a model.",
    "tune": "Search the best kernels of a model for a device, once.",
    "check": "Compare what a model runs with NumPy; replace what is wrong.",
    "bench": "Measure prefill and decode speed.",
    "report": "Show what was searched, found and kept.",
    "cache": "The cache file: path, content, checking, pruning, bans and pins.",
    "pull": "Fetch a model of the catalog or of the hub.",
    "models": "List the models that are here; show or remove one.",
    "doctor": "Look at drivers, permissions, caches, and what would help.",
    "devices": "List the OpenCL devices.",
    "kernels": "List the operations and what a device can run of them.",
    "completion": "Let a shell complete command lines.",
}


class LazyGroup(click.Group):
    """Imports a command's module when the command is called, so that each pays only its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = import_module(f".{name}", __package__).command
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # The group's own way would import every command for its help.
        names = [(name, text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        items = [CompletionItem(name, help=text) for name, text in names]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings=CONTEXT)
@click.version_option(__version__, "--version", message="clkiln %(version)s")
def app() -> None:
    """Tune the OpenCL kernels of a language model once per device, and run them warm ever after.

    Start with: clkiln pull smollm2-135m, clkiln tune smollm2-135m, clkiln run smollm2-135m "Hi".
    """


class WarningHandler(logging.Handler):
    """Prints the package's log as warnings on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(f"{record.levelname.lower()}: {record.getMessage()}", err=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0; 2 for wrong usage; 130 after Ctrl-C; else 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        # An answer may hold any character; a terminal that can't show one shows a question mark.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    handler = WarningHandler(logging.DEBUG if debug else logging.WARNING)
    logger = logging.getLogger("clkiln")
    logger.addHandler(handler)
    logger.setLevel(handler.level)
    try:
        code = _invoke(arguments, debug)
    finally:
        logger.removeHandler(handler)
    sys.exit(code)


def _invoke(arguments: list[str], debug: bool) -> int:
    try:
        result = app.main(arguments, prog_name="clkiln", standalone_mode=False)
        # Without standalone mode click returns the exit code of --help and --version.
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader went away (`clkiln ... | head`): nothing is left to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ClkilnError as error:
        return _fail(error, error.exit_code, debug)
    except Exception as error:
        # The last line of defence: whatever it is, the user sees one line and not a traceback.
        return _fail(error, 1, debug)


def _fail(error: Exception, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        # What the system says of a file is clear in itself.
        text = f"{error.filename}: {error.strerror}"
    elif not isinstance(error, ClkilnError):
        text = f"unexpected {type(error).__name__}: {text} (--debug shows where)"
    if isinstance(error, UnsupportedOperation) and error.details:
        # All that a device can't do: one each, under what they have in common.
        echo(f"error: {error.headline}:", err=True)
        for detail in error.details:
            wrapped("  ", detail, err=True)
        return code
    echo(f"error: {text}", err=True)
    return code
