"""What a shell offers after Tab beside commands and options: models, devices, operations.

Whatever goes wrong here offers nothing: a half-typed line is no place for an error message.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

import click
from click.shell_completion import CompletionItem

Items = list[CompletionItem]
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Let what looks things up fail: the line that is being typed stays as it is.

    Every exception, because the shell would print its traceback into that line, and because the
    look-ups import a driver's bindings and read folders, which can fail in ways of their own.
    """
    try:
        yield
    except Exception as error:
        logger.debug("nothing to complete with: %s", error)


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Names of the catalog and of what was pulled, and files where none of them fits."""
    # Files first: click's script for bash forgets what stands before them.
    items = [CompletionItem(incomplete, type="file")]
    with _in_silence():
        from ..inference.catalog import CATALOG
        from ..inference.installed import installed

        # What follows a colon is a word of its own for bash.
        here = (model.name for model in installed() if "/" not in model.name[:1])
        names = dict.fromkeys((*CATALOG, *(name for name in here if ":" not in name)))
        items += _those(names, incomplete)
    return items


def devices(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """``cpu``, ``gpu`` and the index of each device, with its name for shells that show it.

    Names themselves hold spaces and brackets, which no two shells complete alike.
    """
    items = _those(("cpu", "gpu"), incomplete)
    with _in_silence():
        from ..runtime.device import list_devices

        found = [(str(device.info.index), device.info.name) for device in list_devices()]
        items += [CompletionItem(i, help=name) for i, name in found if i.startswith(incomplete)]
    return items


def operations(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The operations that have kernels."""
    from ..kernels import OPERATIONS

    return _those(OPERATIONS, incomplete)


def variants(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The kinds of memory; after ``OP=``, which bash takes for a word of its own, nothing."""
    return _those(("buffer", "image"), incomplete)


def choices(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Every variant of every operation as ``OP=VARIANT``; bash takes what follows the equals sign
    for a word of its own."""
    from ..kernels import SPECS

    pairs = [f"{op}={variant.name}" for op, spec in SPECS.items() for variant in spec.variants]
    return _those(pairs, incomplete)


def limits(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The profiles that have names, and files."""
    from ..runtime.limits import PROFILES

    return [CompletionItem(incomplete, type="file"), *_those(PROFILES, incomplete)]


def _those(names: Iterable[str], incomplete: str) -> Items:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
