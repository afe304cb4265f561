"""Which configuration runs a workload: the order of look-up, and where each choice came from.

Tuned for this very driver and kernel; else tuned under another driver (to be verified before use);
else tuned for the nearest bucket of the varying sizes; else tuned for the nearest other shape (to
be verified before use); else the safe default. Bans and pins of the driver
(:mod:`~clkiln.kernels.rules`) hold for all of them.

Parameters of a similar shape are a guess at what is quick, and none at what is right: every
configuration of a space is meant to be right for all shapes, but the sizes are constants of the
build, so what runs is a program that nothing has compared with its reference yet, and compilers
have bugs. A neighbour differs in sizes that a kernel reads at run time, so its program is mostly
the very one that the tuner verified; it is taken as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..cache.rows import BestRow
from ..cache.store import Store
from ..errors import UnsupportedOperation, UsageError
from ..harness.rules import read_rules
from ..kernels import SPECS
from ..kernels.capability import Capabilities
from ..kernels.near import VARYING, nearest
from ..kernels.types import Config, DeviceLimits, Workload
from ..kernels.variants import VariantRequest, choice_fact
from .abilities import Abilities, Missing

Origin = Literal["tuned", "older driver", "neighbour", "similar", "default"]
#: Origins whose parameters have to be verified before they are used.
UNVERIFIED: tuple[Origin, ...] = ("older driver", "similar")
#: Choices of one workload that may turn out wrong before no more similar ones are tried.
MOST_WRONG = 3


@dataclass(frozen=True)
class Choice:
    """A configuration for a workload, and how it was found.

    ``tuned_for`` is the workload whose parameters are borrowed (``neighbour``, ``similar``).
    """

    workload: Workload
    config: Config
    origin: Origin
    tuned_for: Workload | None = None

    @property
    def fallback(self) -> str | None:
        """What was lacking, in a line; None for parameters that hold under this driver."""
        if self.origin == "default":
            return f"{self.workload}: not tuned, safe default {self.config}"
        if self.origin == "older driver":
            return f"{self.workload}: tuned under another driver, {self.config}"
        if self.origin == "similar":
            return f"{self.workload}: not tuned, as tuned for {self.tuned_for}, {self.config}"
        return None


class Chooser:
    """Chooses for one device from what its cache file holds."""

    def __init__(
        self,
        store: Store,
        driver: str,
        limits: DeviceLimits,
        variants: VariantRequest,
        device: str = "this device",
    ) -> None:
        self.store, self.driver, self.limits, self.variants = store, driver, limits, variants
        #: Bans and pins; what was asked for with ``--variant`` goes before a pin.
        self.rules = read_rules(store, driver).under(variants)
        self.abilities = Abilities(limits, variants, device, self.rules)
        self._readable: dict[tuple[Workload, str], bool] = {}
        self._banned: set[tuple[Workload, Config]] = set()
        self._bounded: dict[Workload, tuple[DeviceLimits, str]] = {}
        self._best = {(row.workload, row.digest): row for row in store.best_rows(driver=driver)}
        self._of_op: dict[str, list[tuple[Workload, BestRow]]] = {}
        for row in self._best.values():
            workload = _parse(row.workload)
            if workload is not None:
                self._of_op.setdefault(workload.op, []).append((workload, row))

    def ban(self, choice: Choice) -> None:
        """Never choose it again: it was found to be wrong."""
        self._banned.add((choice.workload, choice.config))

    def shrink(self, choice: Choice, most: int, reason: str) -> None:
        """From now on, choose only what has fewer work-items to a group than ``choice``, and at
        most ``most``: its compiled kernel exceeds a limit, as ``reason`` says."""
        spec = SPECS[choice.workload.op]
        items = math.prod(spec.geometry(choice.workload, choice.config).local_size)
        limits: Any = self._limits(choice.workload)
        bounded = replace(limits, max_work_group_size=min(most, items - 1))
        self._bounded[choice.workload] = (bounded, reason)

    def _limits(self, workload: Workload) -> DeviceLimits:
        return self._bounded[workload][0] if workload in self._bounded else self.limits

    def choose(
        self,
        workload: Workload,
        layout: str | None = None,
        beside: Collection[Workload] = (),
    ) -> Choice:
        """The best known configuration that reads ``layout``, where one is given.

        ``beside`` are workloads that read the same weight: under bans and pins it must lie where
        each of them can read it. Raises :class:`~clkiln.errors.UnsupportedOperation` if no variant
        can run on this device.
        """
        digest = SPECS[workload.op].digest()
        own = self._best.get((str(workload), digest))
        readers = beside if self.rules else ()

        def usable(rows: Iterable[BestRow | str]) -> Iterable[Config]:
            found = self._usable(workload, layout, rows)
            return (config for config in found if self._all_read(readers, workload, config))

        for config in usable(self._requested(workload, digest)):
            return Choice(workload, config, "tuned")
        for config in usable([own] if own else []):
            return Choice(workload, config, "tuned")
        if own and (layout or self.rules or self.abilities.kind(workload, layout)):
            # The winner lies elsewhere or is banned; a measured runner-up may fit.
            for config in usable(self._runners_up(workload, digest)):
                return Choice(workload, config, "tuned")
        old = self.store.best_of_other_driver(str(workload), digest, self.driver)
        for config in usable([old] if old else []):
            return Choice(workload, config, "older driver")
        others = self._others(workload, digest)
        for other, row in nearest(workload, others[True], math.inf):
            for config in usable([row]):
                return Choice(workload, config, "neighbour", other)
        return self._similar(workload, others[False], usable) or Choice(
            workload, self._safe(workload, layout, readers), "default"
        )

    def _all_read(self, readers: Iterable[Workload], workload: Workload, config: Config) -> bool:
        """Whether each of ``readers`` can take a weight as ``config`` has it lie."""
        layout = SPECS[workload.op].layout(workload, config)
        return layout is None or all(self._reads(reader, layout) for reader in readers)

    def _reads(self, workload: Workload, layout: str) -> bool:
        key = workload, layout
        if key not in self._readable:
            try:
                found = self.rules.safe(workload, self._limits(workload), layout=layout)
            except (ValueError, KeyError, TypeError):
                found = None  # no layout of this operation
            self._readable[key] = found is not None
        return self._readable[key]

    def _usable(
        self, workload: Workload, layout: str | None, rows: Iterable[BestRow | str]
    ) -> Iterable[Config]:
        """Configurations of ``rows`` that this device, the layout, the rules and the user allow."""
        spec, kind = SPECS[workload.op], self.abilities.kind(workload, layout)
        for row in rows:
            try:
                config = Config.parse(row if isinstance(row, str) else row.config)
                fits = (
                    spec.contains(workload, config)
                    and kind in (None, spec.variant(config.variant).kind)
                    and self.rules.allows(workload, config, self.limits)
                    and layout in (None, spec.layout(workload, config))
                    and spec.check(workload, config, self._limits(workload)) is None
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

    def _others(
        self, workload: Workload, digest: str
    ) -> dict[bool, list[tuple[Workload, BestRow]]]:
        """What was tuned of the same operation: True those that differ in varying sizes alone."""
        found: dict[bool, list[tuple[Workload, BestRow]]] = {True: [], False: []}
        for other, row in self._of_op.get(workload.op, []):
            if row.digest == digest and other != workload:
                found[_family(other) == _family(workload)].append((other, row))
        return found

    def _similar(
        self,
        workload: Workload,
        others: list[tuple[Workload, BestRow]],
        usable: Callable[[Iterable[BestRow | str]], Iterable[Config]],
    ) -> Choice | None:
        """What was tuned for the nearest shape.

        None where that is the safe default: then the own one is what corresponds to it. None, too,
        where several were found wrong: then the operation is not to be trusted with others.
        """
        if sum(banned == workload for banned, _ in self._banned) >= MOST_WRONG:
            return None
        for other, row in nearest(workload, others):
            for config in usable([row]):
                if self._is_safe(other, config):
                    return None
                return Choice(workload, config, "similar", other)
        return None

    def _is_safe(self, workload: Workload, config: Config) -> bool:
        try:
            return config == SPECS[workload.op].safe(workload, self.limits)
        except (ValueError, KeyError, TypeError):
            return False  # a cache file may hold any workload

    def _safe(
        self, workload: Workload, layout: str | None, readers: Collection[Workload] = ()
    ) -> Config:
        """The safe configuration, else any that can run."""
        if self.rules and (ruled := self._ruled(workload, layout, readers)) is not None:
            return ruled
        spec, limits = SPECS[workload.op], self._limits(workload)
        kind = self.abilities.kind(workload, layout)
        bounded = workload in self._bounded
        can = Capabilities(limits, self.rules) if bounded else self.abilities.capabilities
        config: Config | None = None
        if layout is not None or kind is None:
            config = spec.safe(workload, limits, layout)
        elif isinstance(can.find(workload, kind), Config):
            config = spec.safe_of_kind(workload, limits, kind)
        right = config is not None and kind in (None, spec.variant(config.variant).kind)
        if config is not None and right and spec.check(workload, config, limits) is None:
            return config
        found = can.find(workload, kind, layout)
        if isinstance(found, Config):
            return found
        reason = self._bounded[workload][1] if bounded else found.reason
        raise self.abilities.refusal([Missing(workload, kind, reason)])

    def _ruled(
        self, workload: Workload, layout: str | None, readers: Collection[Workload]
    ) -> Config | None:
        """What bans and pins leave; None where they have no part in it that nothing is left."""

        def all_read(config: Config) -> bool:
            return self._all_read(readers, workload, config)

        limits, kind = self._limits(workload), self.abilities.kind(workload, layout)
        config = self.rules.safe(workload, limits, layout=layout, kind=kind, also=all_read)
        if config is not None:
            return config
        said = self.rules.why(workload, readers)
        if not said:
            return None
        asked = f", as {kind}" if kind else ""
        raise UnsupportedOperation(
            f"{self.abilities.device} can't run {workload.op} of this model",
            [f"{workload}{asked}: {said}"],
        )


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


def _family(workload: Workload) -> list[tuple[str, int | str]]:
    """What workloads that differ only in varying sizes have in common."""
    return [item for item in workload.items if item[0] not in VARYING]
