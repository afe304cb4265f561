"""A tuning run as an object: what is wanted, what is to be done, doing it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from ..cache.layered import LayeredStore
from ..cache.paths import cache_file
from ..cache.rows import RunRow
from ..cache.store import Store
from ..errors import ClkilnError, TuningError, UsageError
from ..harness.rules import rules_on_file
from ..inference.abilities import Abilities
from ..inference.catalog import resolve
from ..inference.choose import together
from ..inference.devices import choose_device, note_speed
from ..inference.graph import Graph, uses
from ..inference.kv_cache import DEFAULT_KV
from ..inference.model import Model, open_model
from ..inference.standard import TRIALS, standard_operations, standard_uses
from ..kernels import SPECS
from ..kernels.variants import VariantRequest
from ..runtime.device import memory_budget
from ..runtime.faults import check_device
from ..tuner.levels import LEVELS, parse_budget
from ..tuner.record import undone
from ..tuner.session import CONFIRM_SHARE, SECONDS_PER_TRIAL, TuningRun
from .summary import STANDARD, TuneSummary
from .whole import WholeModel

if TYPE_CHECKING:
    from ..kernels.uses import Use
    from ..runtime.device import Device
    from ..tuner.session import Progress, TuneResult

logger = logging.getLogger(__name__)


class TuningJob:
    """A tuning run before it begins: what is wanted, on which device, kept where.

    Arguments are those of :func:`tune`. Use it as a context manager: the cache file is opened when
    :attr:`todo` or :meth:`run` need it, and closed at the end.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        device: str | Device | None = None,
        cache: str | Path | None = None,
        *,
        level: str = "normal",
        budget: float | str | None = None,
        kernels: Sequence[str] = (),
        variant: Sequence[str] = (),
        limits: Sequence[str | Path] = (),
        force: bool = False,
        quantize: str | None = None,
        check: bool = True,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._warn, self.force, self.check = warn or logger.warning, force, check
        if level not in LEVELS:
            raise UsageError(f"level {level!r}: {', '.join(LEVELS)}")
        self.level, self.seconds = LEVELS[level], _seconds(budget)
        asked = VariantRequest.parse(variant)
        if model is None and quantize is not None:
            raise UsageError(f"quantize={quantize!r} needs a model with weights that are floats")
        self.quantize = quantize
        self.model = None if model is None else open_model(resolve(str(model)), quantize)
        self.name = STANDARD if self.model is None else self.model.config.name
        # Among the standard shapes are tied heads, too.
        self.variants = together(asked, self.model is None or self.model.config.tied)
        digest = "" if self.model is None else self.model.config.digest
        #: The device, and why it was chosen, as a phrase.
        self.device, self.why = choose_device(device, digest, self._warn, limits)
        info = self.device.info
        self.cache = Path(cache) if cache else cache_file(info.name, info.platform)
        self._rules = rules_on_file(self.cache, info.driver_key).under(self.variants)
        self._abilities = Abilities(info, self.variants, info.name, self._rules)
        #: All of the workloads, and those of them that are wanted.
        self.uses = self._standard(kernels) if self.model is None else self._uses(self.model)
        self.wanted = self.uses if self.model is None else _only(self.uses, kernels)
        unmet = self._abilities.unmet(use.workload for use in self.wanted)
        if unmet:
            self._warn(f"not as asked: {'; '.join(unmet)}")

    # -- what is to be done ------------------------------------------------------------------------

    def _standard(self, kernels: Sequence[str]) -> list[Use]:
        """The standard set, as large as there is time for."""
        info = self.device.info
        _check_kernels(kernels, standard_operations(DEFAULT_KV), "the standard shapes")
        limits = [s for s in (self.level.seconds, self.seconds) if s is not None]
        found = standard_uses(
            info, memory_budget(info), DEFAULT_KV, ops=kernels,
            seconds=min(limits) * (1 - CONFIRM_SHARE) if limits else None,
        )  # fmt: skip
        if not found:
            raise UsageError(f"no standard shape fits {info.name} and its memory: name a model")
        return found

    def _uses(self, model: Model) -> list[Use]:
        """A model's workloads, but for contexts that the device can't run: an engine ends before.

        Raises :class:`~clkiln.errors.UnsupportedOperation` where it can't run the model at all.
        """
        graph = Graph(model.config, model.weights, DEFAULT_KV, self.device.info)
        found = uses(graph, model.config.context_length)
        able = self._abilities.able(use.workload for use in found)
        return [use for use in found if use.workload in able]

    @cached_property
    def store(self) -> Store:
        """The device's cache file, opened. Raises :class:`~clkiln.errors.CacheError`."""
        return LayeredStore.open(self.cache, warn=self._warn)

    @cached_property
    def todo(self) -> list[Use]:
        """What is wanted and was not yet searched to the end at this level."""
        if self.force:
            return self.wanted
        info = self.device.info
        return undone(
            self.store, info.driver_key, self.wanted, self.level, self.variants, limits=info
        )

    def preview(self) -> dict[str, Any]:
        """What a run would search: workloads, feasible configurations, estimated seconds."""
        info, rules, rows, total = self.device.info, self._rules, [], 0
        for use in self.wanted:
            spec, kind = SPECS[use.workload.op], self._abilities.kind(use.workload)
            found = spec.feasible(use.workload, info, kind)
            feasible = sum(rules.allows(use.workload, config, info) for config in found)
            rows.append({"workload": str(use.workload), "phase": use.phase, "feasible": feasible})
            total += feasible
        limits = (self.level.seconds, self.seconds, total * SECONDS_PER_TRIAL)
        return {
            "device": info.name,
            "level": self.level.name,
            "workloads": rows,
            "feasible": total,
            "estimated_s": min(limit for limit in limits if limit is not None),
        }

    def __enter__(self) -> TuningJob:
        return self

    def __exit__(self, *exc: object) -> None:
        if "store" in self.__dict__:
            self.store.close()

    # -- doing it ----------------------------------------------------------------------------------

    def run(self, progress: Callable[[Progress], None] | None = None) -> TuneSummary:
        """Search :attr:`todo`, measure the engine before and after, keep and return the figures."""
        if not self.todo:
            return self._summary(already_done=True, kernels=len(self.wanted))
        from ..inference.check import after_tuning

        check_device(self.device)
        driver = self.device.info.driver_key
        row = RunRow(self.name, self.level.name, driver, self.seconds)
        run_id = self.store.start_run(row)
        tuning = TuningRun(
            self.store, self.device.info, self.todo, self.level,
            others=[use for use in self.uses if use not in self.todo], seconds=self.seconds,
            force=self.force, variants=self.variants, run=run_id,
            progress=progress or (lambda now: None),
            reach=None if self.model else 1 / TRIALS,
        )  # fmt: skip
        try:
            result = tuning.run()
        except BaseException as error:
            tuning.result.defaults.clear()
            self.store.finish_run(run_id, tuning.result.seconds, _figures(tuning.result, {}))
            if isinstance(error, TuningError):
                raise TuningError(f"{error}; {self._kept(tuning.result.trials)}") from error
            raise
        # Whatever becomes of the check and of the speeds, the run and its trials stand.
        self.store.finish_run(run_id, result.seconds, _figures(result, {}))
        check = None
        if (model := self.model) is not None and self.check:
            check = after_tuning(lambda: self._whole(model).engine(self.cache), self._warn)
        speeds = {} if self.model is None else self._speeds(self.model, result)
        self.store.finish_run(run_id, result.seconds, _figures(result, speeds))
        return self._summary(
            already_done=False, kernels=len(tuning.tasks), seconds=result.seconds,
            trials=result.trials, by_status=result.by_status, **speeds,
            speedup=None if self.model else self._speedup(), check=check,
        )  # fmt: skip

    def _kept(self, trials: int) -> str:
        """What is left of a run that could not go on."""
        return (
            f"{trials} trial{'s' * (trials != 1)} of this run and what they found are kept in "
            f"{self.cache}: clkiln tune goes on from there"
        )

    def _summary(self, **figures: Any) -> TuneSummary:
        return TuneSummary(
            model=self.name,
            device=self.device.info.name,
            cache_file=str(self.cache),
            level=self.level.name,
            **figures,
        )

    def _speedup(self) -> float | None:
        """Geometric mean of the default's time over the best's, of the workloads searched."""
        if str(self.variants):
            return None  # such choices are kept without the default's time
        driver, gains = self.device.info.driver_key, list[float]()
        for use in self.todo:
            row = self.store.best(str(use.workload), driver, SPECS[use.workload.op].digest())
            if row is not None and row.default_time and row.time:
                gains.append(row.default_time / row.time)
        return geometric_mean(gains) if gains else None

    def _whole(self, model: Model) -> WholeModel:
        return WholeModel(model, self.device, self.quantize, self.variants)

    def _speeds(self, model: Model, result: TuneResult) -> dict[str, float | None]:
        """Decode and prefill tokens per second with the safe defaults and with what was found."""
        whole, nothing = self._whole(model), (None, None)
        before: tuple[float | None, float | None] = nothing
        after: tuple[float | None, float | None] = nothing
        try:
            after = whole.speed(self.cache)
            before = whole.default_speed(result.defaults)
        except ClkilnError as error:
            self._warn(f"tuned, but the whole model could not be measured: {error}")
        decode, prefill = after
        if decode is not None and not str(self.variants):
            driver = self.device.info.driver_key
            note_speed(self.store, driver, model.config, decode, prefill, tuned=True)
        return {
            "decode_before": before[0],
            "decode_after": after[0],
            "prefill_before": before[1],
            "prefill_after": after[1],
        }


def _seconds(budget: float | str | None) -> float | None:
    if budget is None or isinstance(budget, str):
        return None if budget is None else parse_budget(budget)
    if not budget > 0:
        raise UsageError(f"budget {budget!r}: a number of seconds above 0, or for example '5m'")
    return float(budget)


def _only(found: list[Use], kernels: Sequence[str]) -> list[Use]:
    if not kernels:
        return found
    _check_kernels(kernels, {use.workload.op for use in found}, "this model")
    return [use for use in found if use.workload.op in kernels]


def _check_kernels(names: Sequence[str], ops: Collection[str], where: str) -> None:
    for name in names:
        if name not in ops:
            raise UsageError(f"no kernel {name!r} in {where}; it has {', '.join(sorted(ops))}")


def _figures(result: TuneResult, speeds: dict[str, float | None]) -> dict[str, Any]:
    return {**speeds, "trials": result.trials, "by_status": result.by_status}
