"""What may be tuned of a workload, and what of it a device can run, counted and grouped."""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import UsageError
from . import SPECS
from .coding import DTYPES, coding_of
from .spec import KernelSpec
from .types import DeviceLimits, Value, Variant, Workload

_NUMBER = re.compile(r"\b\d+\b")


@dataclass(frozen=True)
class VariantSurvey:
    """One variant of a workload.

    ``configurations`` counts its points before any constraint. Under a device's limits
    ``feasible`` counts those that nothing speaks against, ``missing`` names the features that the
    device lacks, and ``reasons`` says how many points fall to which limit, most first; without
    limits ``feasible`` is None.
    """

    variant: Variant
    parameters: Mapping[str, tuple[Value, ...]]
    configurations: int
    feasible: int | None = None
    missing: tuple[str, ...] = ()
    reasons: tuple[tuple[str, int], ...] = ()


def find_spec(name: str) -> KernelSpec:
    """The operation called ``name``. Raises :class:`~clkiln.errors.UsageError`, with a guess."""
    if name in SPECS:
        return SPECS[name]
    close = get_close_matches(name.lower(), SPECS, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UsageError(f"no kernel {name!r}{hint} (there is {', '.join(SPECS)})")


def parse_workload(text: str) -> Workload:
    """A workload as people type it: its words in any order.

    Raises :class:`~clkiln.errors.UsageError` for anything that its operation cannot be surveyed
    with: it has the names of the operation's example, and integers where that has integers.
    """
    op, *words = text.split() or [""]
    spec = find_spec(op)
    example = Workload.parse(spec.example)
    try:
        workload = Workload.parse(" ".join([op, *sorted(words)]))
    except ValueError:
        raise UsageError(f"workload {text!r}: write it like {spec.example!r}") from None
    sizes = {name for name, value in example.items if isinstance(value, int)}
    given = dict(workload.items)
    lacking = dict(example.items).keys() - given.keys()
    if lacking:
        raise UsageError(f"workload {text!r} lacks {', '.join(sorted(lacking))}: {spec.example!r}")
    for name, value in given.items():
        if name in sizes and not (isinstance(value, int) and 0 < value < 1 << 40):
            raise UsageError(f"workload {text!r}: {name}={value} is no size")
    try:
        coding_of(str(given.get("w", DTYPES[0])))
    except ValueError as error:
        raise UsageError(f"workload {text!r}: {error}") from None
    return workload


def survey(workload: Workload, limits: DeviceLimits | None = None) -> tuple[VariantSurvey, ...]:
    """Every variant of a workload, under the limits of a device if they are given.

    Raises :class:`~clkiln.errors.UsageError` for a workload that its operation makes no sense of.
    """
    try:
        return tuple(_survey(workload, variant, limits) for variant in SPECS[workload.op].variants)
    except (KeyError, ValueError, TypeError, ArithmeticError, StopIteration) as error:
        detail = " ".join(str(error).strip("'\"").split())
        raise UsageError(f"workload {str(workload)!r}: {detail}") from error


def _survey(workload: Workload, variant: Variant, limits: DeviceLimits | None) -> VariantSurvey:
    spec = SPECS[workload.op]
    parameters = spec.parameters(workload, variant)
    configs = [c for c in spec.space(workload, variant.kind) if c.variant == variant.name]
    if limits is None:
        return VariantSurvey(variant, parameters, len(configs))
    found = (spec.check(workload, config, limits) for config in configs)
    broken = [infeasible.reason for infeasible in found if infeasible is not None]
    missing = tuple(sorted(variant.requires - limits.features))
    feasible = len(configs) - len(broken)
    return VariantSurvey(
        variant, parameters, len(configs), feasible, missing, group_reasons(broken)
    )


def group_reasons(reasons: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Reasons that differ in their numbers only as one, with ranges, and how many they are.

    ``LX 16 for 5 row tiles`` and ``LX 32 for 9 row tiles`` -> ``LX 16-32 for 5-9 row tiles``.
    """
    groups: dict[str, Counter[tuple[int, ...]]] = {}
    for reason in reasons:
        numbers = tuple(map(int, _NUMBER.findall(reason)))
        groups.setdefault(_NUMBER.sub("\0", reason), Counter())[numbers] += 1
    grouped = []
    for form, found in groups.items():
        columns = zip(*found, strict=True)
        ranges = iter([_range(min(column), max(column)) for column in columns])
        text = re.sub("\0", lambda hole: next(ranges), form)  # noqa: B023 (used up at once)
        grouped.append((text, found.total()))
    return tuple(sorted(grouped, key=lambda pair: -pair[1]))


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def summary(spec: KernelSpec) -> str:
    """What the operation does, in a line: the first of its module's documentation."""
    return _plain((sys.modules[type(spec).__module__].__doc__ or "").split("\n")[0])


def description(spec: KernelSpec) -> list[str]:
    """What its sizes, tags and parameters mean, as paragraphs: its own and what it shares."""
    kinds = [kind for kind in type(spec).mro() if kind is not KernelSpec]
    texts = [
        _plain(inspect.cleandoc(k.__doc__))
        for k in kinds
        if issubclass(k, KernelSpec) and k.__doc__
    ]
    return [" ".join(part.split()) for text in texts for part in text.split("\n\n")]


def _plain(text: str) -> str:
    """Documentation without its mark-up: ```x``` and ``:class:`~a.b.X``` as ``x`` and ``X``."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)
    return text.replace("``", "")
