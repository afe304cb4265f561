"""Which configuration runs a workload: the order of look-up, and where each choice came from.

Tuned for this very driver and kernel; else tuned under another driver (to be verified before use);
else tuned for the nearest bucket of the varying sizes; else the safe default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..cache.rows import BestRow
from ..cache.store import Store
from ..errors import UnsupportedOperation, UsageError
from ..kernels import SPECS
from ..kernels.types import Config, DeviceLimits, Workload
from ..kernels.variants import VariantRequest, choice_fact

Origin = Literal["tuned", "older driver", "neighbour", "default"]
#: Sizes that vary at run time; workloads that differ in nothing else are neighbours.
VARYING = ("m", "ctx")


@dataclass(frozen=True)
class Choice:
    """A configuration for a workload, and how it was found."""

    workload: Workload
    config: Config
    origin: Origin

    @property
    def fallback(self) -> str | None:
        """What was lacking, in a line; None for parameters that hold under this driver."""
        if self.origin == "default":
            return f"{self.workload}: not tuned, safe default {self.config}"
        if self.origin == "older driver":
            return f"{self.workload}: tuned under another driver, {self.config}"
        return None


class Chooser:
    """Chooses for one device from what its cache file holds."""

    def __init__(
        self, store: Store, driver: str, limits: DeviceLimits, variants: VariantRequest
    ) -> None:
        self.store, self.driver, self.limits, self.variants = store, driver, limits, variants
        self._banned: set[tuple[Workload, Config]] = set()
        self._best = {(row.workload, row.digest): row for row in store.best_rows(driver=driver)}
        self._families: dict[tuple[str, str], list[tuple[Workload, BestRow]]] = {}
        for row in self._best.values():
            workload = _parse(row.workload)
            if workload is not None:
                self._families.setdefault(_family(workload), []).append((workload, row))

    def ban(self, choice: Choice) -> None:
        """Never choose it again: it was found to be wrong."""
        self._banned.add((choice.workload, choice.config))

    def choose(self, workload: Workload, layout: str | None = None) -> Choice:
        """The best known configuration that reads ``layout``, where one is given.

        Raises :class:`~clkiln.errors.UnsupportedOperation` if no variant can run on this device.
        """
        digest = SPECS[workload.op].digest()
        own = self._best.get((str(workload), digest))
        for config in self._usable(workload, layout, self._requested(workload, digest)):
            return Choice(workload, config, "tuned")
        for config in self._usable(workload, layout, [own] if own else []):
            return Choice(workload, config, "tuned")
        if own and (layout or self.variants.kind(workload.op)):
            # The winner lies elsewhere; a measured runner-up may fit.
            for config in self._usable(workload, layout, self._runners_up(workload, digest)):
                return Choice(workload, config, "tuned")
        old = self.store.best_of_other_driver(str(workload), digest, self.driver)
        for config in self._usable(workload, layout, [old] if old else []):
            return Choice(workload, config, "older driver")
        for config in self._usable(workload, layout, self._neighbours(workload, digest)):
            return Choice(workload, config, "neighbour")
        return Choice(workload, self._safe(workload, layout), "default")

    def _usable(
        self, workload: Workload, layout: str | None, rows: Iterable[BestRow | str]
    ) -> Iterable[Config]:
        """Configurations of ``rows`` that this device, the layout and the user allow."""
        spec = SPECS[workload.op]
        for row in rows:
            try:
                config = Config.parse(row if isinstance(row, str) else row.config)
                fits = (
                    spec.contains(workload, config)
                    and self.variants.allows(workload.op, config)
                    and layout in (None, spec.layout(workload, config))
                    and spec.check(workload, config, self.limits) is None
                )
            except (ValueError, KeyError, TypeError):
                continue  # a row that this version can't read is no row
            if fits and (workload, config) not in self._banned:
                yield config

    def _requested(self, workload: Workload, digest: str) -> list[str]:
        """What was tuned under the same ``--variant``."""
        if not str(self.variants):
            return []
        fact = self.store.fact(
            choice_fact(str(self.variants), workload, digest), driver=self.driver
        )
        return [fact] if isinstance(fact, str) else []

    def _runners_up(self, workload: Workload, digest: str) -> list[str]:
        trials = self.store.trials(
            workload=str(workload), driver=self.driver, digest=digest, status="ok"
        )
        return [t.config for t in sorted(trials, key=lambda t: t.time or float("inf"))]

    def _neighbours(self, workload: Workload, digest: str) -> list[BestRow]:
        near = [
            (_distance(workload, other), row)
            for other, row in self._families.get(_family(workload), [])
            if row.digest == digest and other != workload
        ]
        return [row for _, row in sorted(near, key=lambda pair: pair[0])]

    def _safe(self, workload: Workload, layout: str | None) -> Config:
        spec = SPECS[workload.op]
        kind = self.variants.kind(workload.op)
        if layout is not None or kind is None:
            config: Config | None = spec.safe(workload, self.limits, layout)
        else:
            config = spec.safe_of_kind(workload, self.limits, kind)
        reason = "no variant fits"
        if config is not None:
            broken = spec.check(workload, config, self.limits)
            if broken is None:
                return config
            reason = broken.reason
        asked = f" as {kind}" if kind else ""
        raise UnsupportedOperation(f"{workload}: this device can't run it{asked}: {reason}")


def together(request: VariantRequest, tied: bool) -> VariantRequest:
    """``request`` with one kind for all operations that read the same weights.

    A weight lies in one place, so what is asked of GEMV holds for GEMM, and the other way about;
    for the embedding look-up, too, where the output head is ``tied`` to it. Raises
    :class:`~clkiln.errors.UsageError` where two kinds are asked of them.
    """
    ops = ("gemv", "gemm", "embedding") if tied else ("gemv", "gemm")
    asked = {op: request.by_op[op] for op in ops if op in request.by_op}
    if len(set(asked.values())) > 1:
        what = " and ".join(f"{op}={kind}" for op, kind in asked.items())
        raise UsageError(f"variants {what}: they read the same weights, so ask one kind of them")
    kinds = set(asked.values())
    return VariantRequest(
        request.default, {**request.by_op, **{op: kind for kind in kinds for op in ops}}
    )


def _parse(text: str) -> Workload | None:
    try:
        return Workload.parse(text)
    except ValueError:
        return None


def _family(workload: Workload) -> tuple[str, str]:
    """What workloads that differ only in varying sizes have in common."""
    rest = [f"{name}={value}" for name, value in workload.items if name not in VARYING]
    return workload.op, " ".join(rest)


def _distance(a: Workload, b: Workload) -> float:
    """How far the varying sizes lie apart, as the product of their ratios."""
    sizes, others = dict(a.items), dict(b.items)
    ratio = 1.0
    for name in VARYING:
        one, two = sizes.get(name), others.get(name)
        if isinstance(one, int) and isinstance(two, int):
            ratio *= max(one, two) / min(one, two)
    return ratio
