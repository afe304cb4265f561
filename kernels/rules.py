"""Bans and pins: which variants and configurations may run on a driver, whatever was measured.

A ban says that something was found to be wrong there, or that a user wants it left alone; a pin
that an operation takes one variant and no other. Plain data: where it is kept is not said here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from . import SPECS
from .feasible import Infeasible
from .layout import Layout
from .space import Space
from .spec import KernelSpec
from .types import Config, DeviceLimits, Variant, Workload
from .variants import VariantRequest

By = Literal["check", "user"]

#: Operations that read one weight, which lies in one layout; the last where the head is tied.
SHARING = ("gemv", "gemm", "embedding")
#: Those that read the embedding where it is the output head, too.
TIED = ("gemv", "embedding")
#: Banned configurations of one workload after which no others are tried: it is the kernel.
MOST_WRONG = 6


@dataclass(frozen=True)
class Ban:
    """Why something is banned, since when (a UTC stamp), and by whom.

    A check's ban holds for the source that it found to be wrong, which ``digest`` names; an edited
    kernel gets another chance. A user's has no digest and holds until it is taken back.
    """

    reason: str
    by: By = "user"
    digest: str = ""
    since: str = ""

    def holds(self, op: str) -> bool:
        return op in SPECS and self.digest in ("", SPECS[op].digest())


@dataclass(frozen=True)
class Rules:
    """Banned ``variants`` by (operation, variant), banned ``configs`` of single workloads, and
    ``pins``: the variant that an operation has to take. Values are never changed in place."""

    variants: Mapping[tuple[str, str], Ban] = field(default_factory=dict)
    configs: Mapping[tuple[Workload, Config], Ban] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    #: What is left of conversions on devices, as far as it was asked: many readers share one.
    _made: dict[tuple[Workload, DeviceLimits], Config | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __bool__(self) -> bool:
        return bool(self.variants or self.configs or self.pins)

    # -- as data -----------------------------------------------------------------------------------

    @classmethod
    def of(cls, data: Any) -> Rules:
        """Inverse of :meth:`as_dict`. What makes no sense, or is of operations that are no more,
        is left out: a cache file may hold anything."""
        data = data if isinstance(data, dict) else {}
        variants: dict[tuple[str, str], Ban] = {}
        for row in _rows(data.get("variants")):
            op, name = str(row.get("op")), str(row.get("variant"))
            if _has(op, name) and (ban := _ban(row)).holds(op):
                variants[op, name] = ban
        configs: dict[tuple[Workload, Config], Ban] = {}
        for row in _rows(data.get("configs")):
            try:
                key = Workload.parse(str(row["workload"])), Config.parse(str(row["config"]))
            except (ValueError, KeyError):
                continue
            if (ban := _ban(row)).holds(key[0].op):
                configs[key] = ban
        given = data.get("pins")
        pins = given if isinstance(given, dict) else {}
        return cls(variants, configs, {op: v for op, v in pins.items() if _has(op, v)})

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "variants": [
                {"op": op, "variant": name, **asdict(ban)}
                for (op, name), ban in sorted(self.variants.items())
            ],
            "configs": [
                {"workload": str(workload), "config": str(config), **asdict(ban)}
                for (workload, config), ban in self.configs.items()
            ],
            "pins": dict(sorted(self.pins.items())),
        }

    # -- changed -----------------------------------------------------------------------------------

    def ban(self, op: str, variant: str, ban: Ban) -> Rules:
        return replace(self, variants={**self.variants, (op, variant): ban})

    def ban_config(self, workload: Workload, config: Config, ban: Ban) -> Rules:
        return replace(self, configs={**self.configs, (workload, config): ban})

    def unban(self, op: str, variant: str) -> Rules:
        """Without the ban of a variant, and without those of its single configurations."""
        variants = {key: ban for key, ban in self.variants.items() if key != (op, variant)}
        configs = {
            (workload, config): ban
            for (workload, config), ban in self.configs.items()
            if (workload.op, config.variant) != (op, variant)
        }
        return replace(self, variants=variants, configs=configs)

    def pin(self, op: str, variant: str) -> Rules:
        return replace(self, pins={**self.pins, op: variant})

    def unpin(self, op: str) -> Rules:
        return replace(self, pins={o: variant for o, variant in self.pins.items() if o != op})

    def under(self, request: VariantRequest) -> Rules:
        """What counts beside ``--variant``: a pin goes where another kind was asked for."""
        kept = {
            op: name
            for op, name in self.pins.items()
            if request.kind(op) in (None, SPECS[op].variant(name).kind)
        }
        return replace(self, pins=kept)

    # -- what they allow ---------------------------------------------------------------------------

    def left(self, op: str) -> tuple[Variant, ...]:
        """The variants of ``op`` that are not banned, and only the pinned one where one is."""
        return tuple(
            variant
            for variant in SPECS[op].variants
            if (op, variant.name) not in self.variants
            and self.pins.get(op, variant.name) == variant.name
        )

    def allows(
        self, workload: Workload, config: Config, limits: DeviceLimits | None = None
    ) -> bool:
        """Whether ``config`` may run, and something may that makes what it reads: a configuration
        of each conversion that a device with ``limits`` can run; on any device without them."""
        return (
            (workload.op, config.variant) not in self.variants
            and (workload, config) not in self.configs
            and self.pins.get(workload.op, config.variant) == config.variant
            and self._converts(workload, config, limits)
        )

    def _converts(self, workload: Workload, config: Config, limits: DeviceLimits | None) -> bool:
        """Whether something is left of every conversion that ``config`` needs."""
        if not self:
            return True
        needed = SPECS[workload.op].conversions(workload, config)
        if limits is None:
            return all(self.left(conversion.op) for conversion in needed.values())
        return len(self.conversions(workload, config, limits)) == len(needed)

    def conversions(
        self, workload: Workload, config: Config, limits: DeviceLimits
    ) -> dict[str, tuple[Workload, Config]]:
        """As :meth:`~.spec.KernelSpec.conversions`, with the configuration of each that comes first
        on a device with ``limits``; without those that nothing is left of."""
        found = {}
        for name, needed in SPECS[workload.op].conversions(workload, config).items():
            key = needed, limits
            if key not in self._made:
                self._made[key] = self.safe(needed, limits)
            if (made := self._made[key]) is not None:
                found[name] = needed, made
        return found

    def wrong(self, workload: Workload) -> list[Config]:
        """The configurations that are banned for ``workload`` alone."""
        return [config for other, config in self.configs if other == workload]

    def of_ops(self, ops: Iterable[str]) -> Rules:
        """Those that are about ``ops``."""
        wanted = set(ops)
        return Rules(
            {key: ban for key, ban in self.variants.items() if key[0] in wanted},
            {key: ban for key, ban in self.configs.items() if key[0].op in wanted},
            {op: name for op, name in self.pins.items() if op in wanted},
        )

    def lines(self) -> list[str]:
        """What holds for whole operations, a line each."""
        lines = [
            f"{op}={name} is banned for this driver ({ban.reason})"
            for (op, name), ban in self.variants.items()
        ]
        return lines + [f"{op}={name} is pinned for this driver" for op, name in self.pins.items()]

    def all_lines(self) -> list[str]:
        """As :meth:`lines`, with the configurations that are banned for single workloads."""
        return self.lines() + [
            f"{workload} {config} is banned for this driver ({ban.reason})"
            for (workload, config), ban in self.configs.items()
        ]

    def why(self, workload: Workload, beside: Iterable[Workload] = ()) -> str:
        """What the rules say of a workload that nothing is left for, and of those that read the
        same weight ``beside`` it; empty if nothing."""
        together = {workload, *beside}
        own = {key: ban for key, ban in self.configs.items() if key[0] in together}
        said = replace(self.of_ops(each.op for each in together), configs=own).all_lines()
        return ", ".join(said) + (": clkiln cache rules lists them" if said else "")

    def safe(
        self,
        workload: Workload,
        limits: DeviceLimits,
        *,
        layout: str | None = None,
        kind: str | None = None,
        also: Callable[[Config], bool] = lambda config: True,
    ) -> Config | None:
        """The safe default of a workload, or what comes next of all that the rules leave.

        Of ``kind`` where one is asked for, in ``layout`` where one is given, and such that ``also``
        holds. After the spec's own default the default in other layouts and of other variants; but
        where configurations were wrong, those that have least in common with them. None if nothing
        is left, or too many of the workload's configurations were wrong.
        """
        spec, names = SPECS[workload.op], {variant.name for variant in self.left(workload.op)}

        def fits(config: Config) -> bool:
            # The cheap ones first: of large spaces many are asked.
            return (
                config.variant in names
                and (workload, config) not in self.configs
                and self._converts(workload, config, limits)
                and (kind is None or spec.variant(config.variant).kind == kind)
                and layout in (None, spec.layout(workload, config))
                and spec.check(workload, config, limits) is None
                and also(config)
            )

        return next(filter(fits, self._candidates(workload, limits, layout, kind)), None)

    def _candidates(
        self, workload: Workload, limits: DeviceLimits, layout: str | None, kind: str | None
    ) -> Iterator[Config]:
        spec = SPECS[workload.op]
        if layout is not None or kind is None:
            yield spec.safe(workload, limits, layout)
        elif (config := spec.safe_of_kind(workload, limits, kind)) is not None:
            yield config
        banned = self.wrong(workload)
        left = self.left(workload.op)
        if not self or not left or len(banned) >= MOST_WRONG:
            return
        spaces = (Space(spec, workload, variant, limits, layout) for variant in left)
        space = [config for each in spaces for config in each.feasible()]
        if banned:
            yield from sorted(space, key=lambda config: _likeness(config, banned))
            return
        for found in dict.fromkeys(spec.layout(workload, config) for config in space):
            if found not in (None, layout):
                yield spec.safe(workload, limits, found)
        yield from space


def places(rules: Rules, limits: DeviceLimits | None, ops: Iterable[str]) -> set[str]:
    """The kinds of memory in which a weight may lie so that each of ``ops`` can read it there."""
    found = [{_place(SPECS[op], variant, limits) for variant in rules.left(op)} for op in ops]
    return set.intersection(*found) - {""} if found else set()


def tied_problem(rules: Rules, limits: DeviceLimits | None) -> str:
    """What the rules keep from running though each operation can: models that read one weight with
    the embedding look-up and the output head. Empty if nothing."""
    if places(rules, limits, TIED) or not all(places(rules, limits, [op]) for op in TIED):
        return ""
    said = ", ".join(rules.of_ops(TIED).lines())
    return (
        "models whose output head is the embedding can't run: "
        f"{' and '.join(TIED)} read one weight there, and would want it in different memory "
        f"({said})"
    )


def _place(spec: KernelSpec, variant: Variant, limits: DeviceLimits | None) -> str:
    """Where a variant's weight lies, by the operation's example; empty if it can't run here."""
    workload = Workload.parse(spec.example)
    if limits is None:
        found: Config | Infeasible = next(spec.space(workload, variant.kind))
    else:
        found = Space(spec, workload, variant, limits).find()
    if not isinstance(found, Config):
        return ""
    layout = spec.layout(workload, found)
    return Layout.parse(layout).memory if layout else "buffer"


def _likeness(config: Config, others: Iterable[Config]) -> tuple[int, str]:
    """How much a configuration has in common with the most similar of ``others``."""
    values = {*config.params, ("variant", config.variant)}
    shared = [len(values & {*other.params, ("variant", other.variant)}) for other in others]
    return max(shared, default=0), str(config)


def _has(op: Any, variant: Any) -> bool:
    return op in SPECS and any(v.name == variant for v in SPECS[op].variants)


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _ban(row: Mapping[str, Any]) -> Ban:
    texts = {name: str(row.get(name) or "") for name in ("reason", "digest", "since")}
    return Ban(**texts, by="check" if row.get("by") == "check" else "user")
