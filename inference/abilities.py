"""What a device can run of a whole model, said before anything is allocated.

The words for a person: all that is missing, why, and the option that makes the nearest thing run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from ..errors import UnsupportedOperation
from ..kernels import SPECS
from ..kernels.capability import Alternative, Capabilities, in_dtype
from ..kernels.coding import FLOATS
from ..kernels.feasible import Infeasible
from ..kernels.rules import Rules
from ..kernels.survey import group_reasons
from ..kernels.types import Config, DeviceLimits, Workload
from ..kernels.variants import VariantRequest
from .buckets import CHUNK, context_bucket

NOTHING_NEAR = "nothing near it runs here: try a smaller model or another --device"


@dataclass(frozen=True)
class Missing:
    """A workload that the device can't run (as ``kind``, where one was asked of its operation)."""

    workload: Workload
    kind: str | None
    reason: str


class Abilities:
    """What ``limits`` and ``rules`` allow, under what was asked for with ``--variant``.

    A kind that was asked of all operations is kept where it can run; asked of one operation by
    name it has to run.
    """

    def __init__(
        self,
        limits: DeviceLimits,
        variants: VariantRequest,
        device: str,
        rules: Rules | None = None,
    ) -> None:
        self.variants, self.device, self.rules = variants, device, rules or Rules()
        self.capabilities = Capabilities(limits, self.rules)
        self._without_rules = Capabilities(limits)

    def kind(self, workload: Workload, layout: str | None = None) -> str | None:
        """As :meth:`Capabilities.kind`."""
        return self.capabilities.kind(self.variants, workload, layout)

    def missing(self, workloads: Iterable[Workload]) -> list[Missing]:
        """Those of ``workloads`` that can't run, each once."""
        missing = []
        for workload in dict.fromkeys(workloads):
            kind = self.variants.by_op.get(workload.op)
            found = self.capabilities.find(workload, kind)
            if isinstance(found, Infeasible):
                missing.append(Missing(workload, kind, self._reason(workload, kind, found)))
        return missing

    def _reason(self, workload: Workload, kind: str | None, broken: Infeasible) -> str:
        """Why a workload can't run: also the rules, if it could without them."""
        said = self.rules.why(workload)
        if said in broken.reason:
            return broken.reason
        without = self._without_rules.find(workload, kind)
        return f"{broken.reason}, and {said}" if isinstance(without, Config) else broken.reason

    def able(self, workloads: Iterable[Workload]) -> set[Workload]:
        """Those of a model's ``workloads`` that can run.

        Raises :class:`~clkiln.errors.UnsupportedOperation` for what no context is too short for;
        an engine ends before a context that can't run.
        """
        every = set(workloads)
        missing = self.missing(every)
        needed = [each for each in missing if not _of_long_context(each.workload)]
        if needed:
            raise self.refusal(sorted(needed, key=lambda each: str(each.workload)))
        return every - {each.workload for each in missing}

    def unmet(self, workloads: Iterable[Workload]) -> list[str]:
        """Where the kind that was asked of all can't run, a line for each operation."""
        default, reasons = self.variants.default, dict[str, list[str]]()
        for workload in workloads if default else ():
            if workload.op in self.variants.by_op:
                continue
            found = self.capabilities.find(workload, default)
            if isinstance(found, Infeasible):
                reason = self._reason(workload, default, found)
                reasons.setdefault(workload.op, []).append(reason)
        return [f"{op}: can't run as {default} here: {_joined(r)}" for op, r in reasons.items()]

    # -- what to say ---------------------------------------------------------------------------

    def refusal(self, missing: Collection[Missing]) -> UnsupportedOperation:
        """The error that names all of ``missing``: operations alike share a line."""
        coding = self._quantised(missing)
        groups: dict[tuple[str, str | None, str], list[Missing]] = {}
        for each in missing:
            hint = self._hint(each, coding)
            groups.setdefault((each.workload.op, each.kind, hint), []).append(each)
        details = []
        for (_, kind, hint), alike in groups.items():
            more = f" and {len(alike) - 1} like it" if len(alike) > 1 else ""
            asked = f", as {kind}" if kind else ""
            reason = _joined(each.reason for each in alike)
            details.append(f"{alike[0].workload}{more}{asked}: {reason}; {hint}")
        ops = list(dict.fromkeys(each.workload.op for each in missing))
        names = " and ".join(filter(None, [", ".join(ops[:-1]), ops[-1]]))
        return UnsupportedOperation(f"{self.device} can't run {names} of this model", details)

    def no_context(self, positions: int, longest: int, why: Missing) -> UnsupportedOperation:
        """The error that a context of ``positions`` is more than the ``longest`` that can run."""
        detail = f"{why.workload}: {why.reason}; nearest that runs: --ctx-size {longest}"
        return UnsupportedOperation(
            f"{self.device} can't run a context of {positions} positions", [detail]
        )

    def _hint(self, missing: Missing, coding: str | None) -> str:
        for other in self.capabilities.alternatives(missing.workload, missing.kind):
            option = _option(other, missing.workload, coding)
            if option:
                return f"nearest that runs: {option}"
        return NOTHING_NEAR

    def _quantised(self, missing: Iterable[Missing]) -> str | None:
        """What ``--quantize`` takes that makes all run whose weights are floats."""
        from ..kernels.quantise import QUANTISERS  # what runs everything needs no quantiser

        floats = [each for each in missing if _floats(each.workload)]
        for coding in QUANTISERS:
            if floats and all(self._runs_in(each.workload, coding) for each in floats):
                return coding
        return None

    def _runs_in(self, workload: Workload, coding: str) -> bool:
        other = in_dtype(workload, "w", coding)
        whole = other == workload.replace(w=coding)
        return whole and isinstance(self.capabilities.find(other), Config)

    # -- contexts ------------------------------------------------------------------------------

    def longest_context(
        self, workloads: Callable[[int], Iterable[Workload]], limit: int
    ) -> tuple[int, Missing | None]:
        """How many positions, up to ``limit``, the ``workloads`` of a context can have, and what a
        longer one breaks; None where all buckets up to the limit's can run."""
        longest = 0
        for bucket in _buckets(limit):
            broken = self.missing(workloads(bucket))
            if not broken:
                longest = min(bucket, limit)
                continue
            low, high = longest, min(bucket, limit) + 1
            while high - low > 1 and not self._wrong(broken):
                middle = (low + high) // 2
                found = self.missing(workloads(middle))
                low, high = (low, middle) if found else (middle, high)
                broken = found or broken
            # What is wrong for a context is no more right for one that is not quite as long.
            wrong = self._wrong(broken)
            return (longest, wrong[0]) if wrong else (low, broken[0])
        return longest, None

    def _wrong(self, missing: Iterable[Missing]) -> list[Missing]:
        """Those of which configurations were banned one by one."""
        return [each for each in missing if self.rules.wrong(each.workload)]


def _buckets(limit: int) -> Iterator[int]:
    bucket = 0
    while bucket < limit:
        bucket = context_bucket(bucket + 1)
        yield bucket


def _option(other: Alternative, workload: Workload, coding: str | None) -> str | None:
    """What to ask for to get an alternative; None where it is not to be had."""
    spec = SPECS[workload.op]
    if other.kind == "variant":
        return f"--variant {workload.op}={spec.variant(other.config.variant).kind}"
    if other.kind == "pieces":
        return None  # the graph has cut what can be cut
    if other.kind == "size":
        return f"{other.change} at most"
    tag, _, dtype = other.change.partition("=")
    if tag == "kv":
        return f"--kv-dtype {dtype}"
    if _floats(workload):
        return f"--quantize {coding}" if coding else None
    return f"weights in {dtype}"


def _of_long_context(workload: Workload) -> bool:
    ctx = dict(workload.items).get("ctx", 0)
    return isinstance(ctx, int) and ctx > context_bucket(CHUNK)


def _floats(workload: Workload) -> bool:
    return dict(workload.items).get("w") in FLOATS


def _joined(reasons: Iterable[str]) -> str:
    return ", ".join(text for text, _ in group_reasons(reasons))
