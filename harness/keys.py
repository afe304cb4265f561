"""Which program of a cache file is whose: from the texts that its rows hold."""

from __future__ import annotations

from ..kernels import SPECS
from ..kernels.spec import KernelSpec
from ..kernels.types import Config, Workload
from ..runtime.program import program_key


def read_config(text: str) -> Config | None:
    """A configuration of a cache file; None if it is none."""
    try:
        return Config.parse(text)
    except ValueError:
        return None


def read_choice(workload: str, config: str) -> tuple[KernelSpec, Workload, Config] | None:
    """The operation, workload and configuration of two texts; None if today's kernels have none
    such: another operation, a parameter or value that is no more, or texts that are neither."""
    spec, parsed = SPECS.get(workload.split(" ")[0]), read_config(config)
    if spec is None or parsed is None:
        return None
    try:
        of = Workload.parse(workload)
        return (spec, of, parsed) if spec.contains(of, parsed) else None
    except (ValueError, KeyError, TypeError):
        return None  # no workload of this operation


def key_of(driver: str, workload: str, config: str) -> str | None:
    """The key of today's program for two texts of a cache file; None if there is none."""
    choice = read_choice(workload, config)
    if choice is None:
        return None
    spec, of, parsed = choice
    return program_key(driver, spec.source(of, parsed))


def split_label(label: str) -> tuple[str, str]:
    """Workload and configuration of a label as :func:`~.operation.label_of` makes it."""
    workload, brace, config = label.partition(" {")
    return workload, f"{{{config}" if brace else ""
