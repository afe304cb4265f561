"""Kernels with one of their barriers taken out: each has to be there for a reason.

A barrier is named by the file that it stands in and its place there: ``reduce.clh 2`` is the second
one of ``kernels/reduce.clh``, in whatever kernel includes that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

import clkiln.kernels
from clk_cases import TINY, small_tiles
from clkiln.kernels import SPECS
from clkiln.kernels.source import Source
from clkiln.kernels.spec import KernelSpec
from clkiln.kernels.types import Config, DeviceLimits, Workload

ROOM = Path(clkiln.kernels.__file__).parent
#: Fewer work-items than these may not see a level of a reduction tree.
ITEMS = 4

_INCLUDE = re.compile(r'^\s*#include\s+"([\w./]+)"\s*$')
_ALIAS = re.compile(r"#define\s+(\w+)\s+barrier\(")
_MACRO = re.compile(r"^\s*#define\s+(\w+)\(", re.MULTILINE)
_CALL = r"\bbarrier\([\w |]*\)"


@dataclass(frozen=True)
class Barrier:
    """The ``place``-th barrier of a file, and the how manieth it is in a kernel's whole source."""

    file: str
    place: int
    index: int

    def __str__(self) -> str:
        return f"{self.file} {self.place}"


def _is_code(line: str) -> bool:
    return not _ALIAS.search(line) and not line.lstrip().startswith("//")


def _pattern(text: str) -> re.Pattern[str]:
    """A barrier, or a macro that stands for one."""
    return re.compile("|".join([_CALL, *(rf"\b{name}\b" for name in _ALIAS.findall(text))]))


def _lines(file: str) -> Iterator[tuple[str, str]]:
    """Lines of a kernel with its includes inlined, each with the file that it stands in."""
    for line in (ROOM / file).read_text(encoding="utf-8").splitlines(keepends=True):
        included = _INCLUDE.match(line)
        if included:
            yield from _lines(included[1])
        else:
            yield file, line


def barriers(spec: KernelSpec) -> list[Barrier]:
    """Every barrier of an operation's source, in order, but for those of macros it does not use."""
    lines = list(_lines(spec.file))
    text = "".join(line for _, line in lines)
    pattern, used = _pattern(text), _used_macros(text)
    found: list[Barrier] = []
    places: dict[str, int] = {}
    index, macro = 0, ""
    for file, line in lines:
        begun = _MACRO.match(line)
        macro = begun[1] if begun else macro
        for _ in pattern.findall(_code(line)) if _is_code(line) else ():
            places[file] = places.get(file, 0) + 1
            if not macro or macro in used:
                found.append(Barrier(file, places[file], index))
            index += 1
        if not line.rstrip().endswith("\\"):
            macro = ""
    return found


def _used_macros(text: str) -> set[str]:
    """Macros with arguments that occur beyond their own definitions."""
    rest = "".join(line for line in text.splitlines(keepends=True) if not _MACRO.match(line))
    return {name for name in _MACRO.findall(text) if re.search(rf"\b{name}\(", rest)}


def _code(line: str) -> str:
    """A line without its comment and without the name that a macro's definition begins with."""
    return re.sub(r"^\s*#define\s+\w+", "", line.partition("//")[0])


class Without:
    """A spec whose kernel lacks one barrier; all else is as it was."""

    def __init__(self, spec: KernelSpec, barrier: Barrier) -> None:
        self._spec, self._barrier = spec, barrier

    def __getattr__(self, name: str) -> object:
        return getattr(self._spec, name)

    def source(self, workload: Workload, config: Config) -> Source:
        source = self._spec.source(workload, config)
        return replace(source, text=without(source.text, self._barrier.index))


def without(text: str, index: int) -> str:
    """``text`` with its barrier number ``index`` replaced by nothing that synchronises."""
    pattern, seen, lines = _pattern(text), 0, []
    for line in text.splitlines(keepends=True):
        count = len(pattern.findall(_code(line))) if _is_code(line) else 0
        if seen <= index < seen + count:
            line = pattern.sub("(void)0", line, count=1)
        seen += count
        lines.append(line)
    return "".join(lines)


def wide_configs(
    spec: KernelSpec, workload: Workload, limits: DeviceLimits, rng: np.random.Generator
) -> list[Config]:
    """Of each variant the configuration with most work-items to a group, and one by chance."""
    candidates = spec.feasible(workload, limits) + small_tiles(spec, workload, limits, rng)
    chosen: list[Config] = []
    for variant in spec.variants:
        wide = [c for c in candidates if c.variant == variant.name]
        wide = [c for c in wide if _items(spec, workload, c) >= ITEMS]
        if wide:
            chosen.append(max(wide, key=lambda c: (_items(spec, workload, c), str(c))))
            chosen.append(wide[rng.integers(len(wide))])
    return list(dict.fromkeys(chosen))


def _items(spec: KernelSpec, workload: Workload, config: Config) -> int:
    return prod(spec.geometry(workload, config).local_size)


def mutants(
    limits: DeviceLimits, kind: str, ops: Sequence[str]
) -> Iterator[tuple[str, KernelSpec, Workload, Config]]:
    """Every kernel without each of its barriers in turn, as cases of the simulator's program."""
    for op in ops:
        spec, rng = SPECS[op], np.random.default_rng([11, *op.encode()])
        for text in TINY.get(op, ()):
            workload = Workload.parse(text)
            for config in wide_configs(spec, workload, limits, rng):
                if spec.variant(config.variant).kind != kind:
                    continue
                for barrier in barriers(spec):
                    name = f"{op} without {barrier}: {workload} {config}"
                    yield name, Without(spec, barrier), workload, config  # type: ignore[misc]
