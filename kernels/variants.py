"""What ``--variant`` asks for: one kind of memory for all operations, or for single ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import UsageError
from . import SPECS
from .types import Workload

KINDS = ("buffer", "image")


@dataclass(frozen=True)
class VariantRequest:
    """``default`` is the kind asked of every operation, ``by_op`` of single operations."""

    default: str | None = None
    by_op: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, values: Iterable[str]) -> VariantRequest:
        """From ``buffer``, ``image`` and ``OP=KIND``. Raises :class:`~clkiln.errors.UsageError`."""
        default: str | None = None
        by_op: dict[str, str] = {}
        for value in values:
            op, sign, kind = value.rpartition("=")
            if kind not in KINDS:
                raise UsageError(f"variant {value!r}: write buffer, image or OP=buffer|image")
            if not sign:
                default = kind
            elif op not in SPECS:
                raise UsageError(f"variant {value!r}: no operation {op!r}; {', '.join(SPECS)}")
            elif kind not in kinds_of(op):
                raise UsageError(f"variant {value!r}: {op} has only {', '.join(kinds_of(op))}")
            else:
                by_op[op] = kind
        return cls(default, by_op)

    def __str__(self) -> str:
        """Canonical; empty if nothing was asked."""
        words = [self.default] if self.default else []
        return " ".join(words + [f"{op}={kind}" for op, kind in sorted(self.by_op.items())])

    def kind(self, op: str) -> str | None:
        """The kind that ``op`` must take; None if it is free, or lacks what was asked of all."""
        if op in self.by_op:
            return self.by_op[op]
        return self.default if self.default in kinds_of(op) else None


def choice_fact(requested: str, workload: Workload, digest: str) -> str:
    """Name of the fact that keeps what was chosen for a workload under a request."""
    return f"choice:{requested}:{digest}:{workload}"


def kinds_of(op: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(variant.kind for variant in SPECS[op].variants))
