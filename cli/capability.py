"""What ``clkiln kernels`` prints of a device's capability table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .common import echo, wrapped

if TYPE_CHECKING:
    from ..kernels.capability import Alternative, Cell
    from ..kernels.survey import VariantSurvey
    from ..kernels.types import Workload

Surveys = dict["Workload", tuple["VariantSurvey", ...]]
#: Columns of the dtypes, by the form of a coding's scales; floats have one each.
_FORMS = {"h": "q", "f": "q", "k": "k"}


def print_table(surveys: Surveys, cells: Sequence[Cell]) -> None:
    """A row for each operation and variant: the dtypes that run, and how many configurations."""
    columns: dict[str, list[str]] = {}
    for cell in cells:
        names = columns.setdefault(_column(cell.dtype), [])
        if cell.dtype not in names:
            names.append(cell.dtype)
    echo(_row("operation", "variant", columns, "space", "feasible"))
    for workload, found in surveys.items():
        for place, each in enumerate(found):
            own = _cells_of(cells, workload.op, each)
            marks = [_mark(own, column) for column in columns]
            name = workload.op if place == 0 else ""
            counts = f"{each.configurations:,}", f"{each.feasible:,}"
            echo(_row(name, each.variant.name, marks, *counts))
    echo()
    for column, names in columns.items():
        if names != [column]:
            wrapped(f"{column}: ", " ".join(names))


def print_what_cannot_run(cells: Sequence[Cell]) -> None:
    """In which dtypes each variant can't run, why, and what would run instead."""
    for alike in _failing(cells):
        op, variant = alike[0].workload.op, alike[0].variant
        every = [c for c in cells if (c.workload.op, c.variant) == (op, variant)]
        wrapped("  ", f"{op} {variant.name} ({_dtypes(alike, every)}): {_reasons(alike)}")


def print_variant(each: VariantSurvey, cells: Sequence[Cell]) -> None:
    """The dtypes of one variant of one operation, and what a configuration of it takes."""
    own = _cells_of(cells, cells[0].workload.op, each)
    running = [cell for cell in own if cell.config is not None]
    if running:
        wrapped("  runs in ", _dtypes(running, own))
        wrapped("  takes   ", _taken(running[0]))
    for alike in _failing(own):
        wrapped("  not in  ", f"{_dtypes(alike, own)}: {_reasons(alike)}")


def _failing(cells: Iterable[Cell]) -> Iterable[list[Cell]]:
    """Cells that can't run, by operation, variant and what kind of thing would run instead."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        if cell.config is None:
            near = cell.nearest.kind if cell.nearest else ""
            groups.setdefault((cell.workload.op, cell.variant.name, near), []).append(cell)
    return groups.values()


def _taken(cell: Cell) -> str:
    """What the configuration of a cell that runs takes of the device."""
    from ..kernels.capability import needs
    from ..units import readable

    assert cell.config is not None
    takes = needs(cell.workload, cell.config)
    parts = [
        f"work-groups of {takes.work_group}",
        f"{readable(takes.local_memory)} of local memory",
    ]
    parts.append(f"tensors of up to {readable(takes.largest)}")
    if takes.image != (0, 0):
        parts.append(f"an image of {takes.image[0]} x {takes.image[1]}")
    if takes.texels:
        parts.append(f"an image buffer of {takes.texels} texels")
    params = " ".join(f"{name}={value}" for name, value in cell.config.params)
    return f"{', '.join(parts)} (in {cell.dtype}, with {params})"


def as_json(cells: Iterable[Cell], each: VariantSurvey, op: str) -> list[dict[str, Any]]:
    """The cells of one variant in full."""
    return [_cell_as_json(cell) for cell in _cells_of(cells, op, each)]


def _cell_as_json(cell: Cell) -> dict[str, Any]:
    from dataclasses import asdict

    from ..kernels.capability import needs

    config = cell.config
    return {
        "tag": cell.tag,
        "dtype": cell.dtype,
        "workload": str(cell.workload),
        "runs": config is not None,
        "configuration": config and {"variant": config.variant, **dict(config.params)},
        "needs": config and asdict(needs(cell.workload, config)),
        "reason": cell.reason,
        "nearest": cell.nearest and _alternative(cell.nearest),
    }


def _alternative(near: Alternative) -> dict[str, Any]:
    return {"kind": near.kind, "change": near.change, "workload": str(near.workload)}


def _cells_of(cells: Iterable[Cell], op: str, each: VariantSurvey) -> list[Cell]:
    return [cell for cell in cells if (cell.workload.op, cell.variant) == (op, each.variant)]


def _column(dtype: str) -> str:
    from ..kernels.coding import CODINGS

    return _FORMS[CODINGS[dtype].scales] if dtype in CODINGS else dtype


def _mark(cells: Iterable[Cell], column: str) -> str:
    running = [cell.config is not None for cell in cells if _column(cell.dtype) == column]
    if not running:
        return "-"
    if all(running) or not any(running):
        return "yes" if all(running) else "no"
    return f"{sum(running)}/{len(running)}"


def _row(operation: str, variant: str, marks: Iterable[str], space: str, feasible: str) -> str:
    cells = "".join(f"{mark:>6}" for mark in marks)
    return f"{operation:<18}{variant:<11}{cells}{space:>8}{feasible:>10}"


def _dtypes(cells: Iterable[Cell], of: Sequence[Cell]) -> str:
    """The dtypes of ``cells`` by tag; those that are all of a tag's in ``of`` are only counted."""
    names: dict[str, list[str]] = {}
    for cell in cells:
        names.setdefault(cell.tag, []).append(cell.dtype)
    texts = []
    for tag, dtypes in names.items():
        most = sum(cell.tag == tag for cell in of)
        whole = len(dtypes) == most > 4
        texts.append(f"{tag}: " * bool(tag) + (f"all {most}" if whole else " ".join(dtypes)))
    return ", ".join(texts)


def _reasons(cells: Sequence[Cell]) -> str:
    """Why cells can't run, and what would: numbers that differ as ranges."""
    from ..kernels.survey import group_reasons

    reasons = ", ".join(text for text, _ in group_reasons(cell.reason for cell in cells))
    changes = group_reasons(cell.nearest.change for cell in cells if cell.nearest)
    if not changes:
        return f"{reasons}; nothing near it runs here"
    return f"{reasons}; nearest that runs: {', '.join(text for text, _ in changes)}"
