"""What a cache file says of correctness: the latest check of each model, bans and pins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..harness.rules import RULES
from ..kernels.rules import Rules
from .model import CheckedOperation, CheckReport, RuleReport
from .results import count, positive

#: Facts of this name are a model's latest check; its digest follows.
CHECK = "check:"


def check_reports(facts: Mapping[str, Any]) -> tuple[CheckReport, ...]:
    """The latest check of each model, the latest of all first. What is garbled is left out."""
    found = [
        _check(value)
        for name, value in facts.items()
        if name.startswith(CHECK) and isinstance(value, Mapping)
    ]
    return tuple(sorted(found, key=lambda check: check.checked, reverse=True))


def _check(value: Mapping[str, Any]) -> CheckReport:
    ok, same = value.get("ok"), value.get("same")
    logits = [positive(row.get("error")) for row in _rows(value.get("logits"))]
    return CheckReport(
        model=str(value.get("model") or "unknown model"),
        checked=str(value.get("checked") or ""),
        ok=ok is True,
        problem=str(value.get("problem") or ""),
        short=value.get("short") is True,
        seconds=positive(value.get("seconds")),
        repeat=count(value.get("repeat")),
        launches=count(value.get("launches")),
        compared=count(value.get("compared")),
        same=same if isinstance(same, bool) else None,
        logits_error=max((error for error in logits if error), default=None),
        operations=tuple(_operation(row) for row in _rows(value.get("operations"))),
        banned=tuple(
            (str(row.get("what") or ""), str(row.get("reason") or ""))
            for row in _rows(value.get("banned"))
        ),
    )


def _operation(row: Mapping[str, Any]) -> CheckedOperation:
    return CheckedOperation(
        op=str(row.get("op") or ""),
        variant=str(row.get("variant") or ""),
        launches=count(row.get("launches")),
        compared=count(row.get("compared")),
        worst=_error(row.get("worst")),
        allowed=_error(row.get("allowed")),
    )


def _error(value: Any) -> float | None:
    """An error, which may be none at all."""
    return 0.0 if value == 0 and not isinstance(value, bool) else positive(value)


def rule_reports(facts: Mapping[str, Any]) -> tuple[RuleReport, ...]:
    """What is banned and pinned for a driver."""
    rules = Rules.of(facts.get(RULES))
    found = [
        RuleReport("banned", f"{op}={name}", ban.reason, ban.by, ban.since)
        for (op, name), ban in rules.variants.items()
    ]
    found += [
        RuleReport("banned", f"{workload} {config}", ban.reason, ban.by, ban.since)
        for (workload, config), ban in rules.configs.items()
    ]
    found += [
        RuleReport("pinned", f"{op}={name}", "", "user", "") for op, name in rules.pins.items()
    ]
    return tuple(found)


def _rows(value: Any) -> Iterable[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
