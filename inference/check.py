"""Checks what a model runs on a device, replaces what is wrong, and keeps what was found.

A launch that is wrong is named; its variant is banned for this driver or, where it is the only one,
its configuration. The next best is checked in turn, until nothing is wrong or nothing is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..cache.codec import now
from ..errors import CacheError, ClkilnError, OpenCLError, UnsupportedOperation
from ..harness.rules import change_rules
from ..kernels import SPECS
from ..kernels.capability import Capabilities
from ..kernels.rules import SHARING, Ban, Rules, places
from ..kernels.types import Config, DeviceLimits, Workload
from .exam import SHORT, Effort, Exam, Findings, Progress, steps_of, unexplained
from .findings import CheckResult, Fault, check_fact, tally_of

if TYPE_CHECKING:
    from .engine import Engine

#: Rounds after which a check gives up: each bans something.
ROUNDS = 40


def examine(
    engine: Engine,
    load: Callable[[], Engine],
    effort: Effort | None = None,
    progress: Progress = lambda doing: None,
) -> tuple[CheckResult, Engine | None]:
    """Check what ``engine`` runs, and replace what is wrong.

    Returns what was found, and the engine that is to be used from now on: the one given or, where
    something was banned, one that ``load`` made after the one before was closed; None where nothing
    is left to run. The result is kept in the cache file, with the bans. What is raised (Ctrl-C)
    leaves the engine closed.
    """
    effort, start = effort or Effort(), time.monotonic()
    device = engine.device
    result = CheckResult(
        engine.config.name, device.name, device.driver_version, effort.repeat, effort.short
    )
    keep = _keeper(engine)
    current = _rounds(engine, load, effort, progress, result)
    result.checked, result.seconds = now(), time.monotonic() - start
    keep(current, result)
    return result, current


def _rounds(
    engine: Engine,
    load: Callable[[], Engine],
    effort: Effort,
    progress: Progress,
    result: CheckResult,
) -> Engine | None:
    """Fill ``result``, round by round; the engine that is left.

    What failed to run is believed the second time, in a fresh context: the first may have been the
    device's doing.
    """
    known, once, stops = set[tuple[object, ...]](), list[Fault](), 0
    current: Engine | None = engine
    while current is not None:
        result.rounds += 1
        found = _round(current, effort, known, progress)
        again = [f for f in found.faults if f.kind == "failed" and not _same_launch(f, once)]
        once, stops = once + again, stops + bool(found.stopped)
        if again or found.stopped:
            found.faults = []
        _merge(result, found)
        if stops > 1:
            result.problem = f"the device fails: {found.stopped}"
        elif found.faults:
            result.problem = result.standing = _banned(current, found.faults, result)
        elif found.problem or not (again or found.stopped):
            result.problem = found.problem or unexplained(found)
            break
        if not result.problem and result.rounds == ROUNDS:
            result.problem = f"after {ROUNDS} rounds still wrong: {(found.faults or once)[0]}"
        if result.problem and not found.stopped:
            break
        current = _again(current, load, result)
    result.notes += [f"failed once and not again: {f}" for f in once if f not in result.faults]
    return current


def _round(
    engine: Engine, effort: Effort, known: set[tuple[object, ...]], progress: Progress
) -> Findings:
    """What one exam finds. What it compiled is kept, whatever became of the device."""
    exam = Exam(engine, effort, known, progress)
    try:
        exam.run()
    except OpenCLError as error:
        exam.found.stopped = str(error)
    except ClkilnError as error:
        exam.found.problem = f"the check could not go on: {error}"
    except BaseException:
        with suppress(ClkilnError):
            engine.close()
        raise
    with suppress(ClkilnError):
        engine.runner.loader.keep_fresh()
    return exam.found


def _same_launch(fault: Fault, faults: Iterable[Fault]) -> bool:
    same = fault.workload, fault.config
    return any((other.workload, other.config) == same for other in faults)


def _banned(engine: Engine, faults: Sequence[Fault], result: CheckResult) -> str:
    """Ban what was wrong; why it could not be, if so."""
    if not engine.store.keeps:
        return f"{faults[0]}; nothing is banned, as no cache file is written"
    try:
        ban(engine, faults, result)
    except CacheError as error:
        return f"{faults[0]}; it could not be banned: {error}"
    return ""


def _again(engine: Engine, load: Callable[[], Engine], result: CheckResult) -> Engine | None:
    """The engine of the next round; None where there is none, or a problem that ends the check."""
    with suppress(ClkilnError):  # of a device that is gone
        engine.close()
    if result.problem:
        return None
    try:
        return load()
    except UnsupportedOperation as error:
        result.problem = f"nothing is left that is right: {error}"
    except ClkilnError as error:
        result.problem = f"the model can't be loaded again: {error}"
    return None


def _merge(result: CheckResult, found: Findings) -> None:
    """Take over what a round found. The tallies of what was banned stay."""
    for tally in found.tallies:
        before = tally_of(result.operations, tally.op, tally.variant)
        if before is None:
            result.operations.append(replace(tally))
            continue
        before.launches, before.random = tally.launches, before.random + tally.random
        before.compared += tally.compared
        before.note(tally.worst, tally.allowed)
    result.faults += found.faults
    result.logits, result.same, result.notes = found.logits, found.same, found.notes


def _keeper(engine: Engine) -> Callable[[Engine | None, CheckResult], None]:
    """Writes a result into the cache file, whether there is an engine in the end or not."""
    from ..cache.store import Store

    path, driver = engine.store.path, engine.device.driver_key
    name = check_fact(engine.runner.graph)
    asked = bool(str(engine.runner.planner.chooser.variants))

    def keep(last: Engine | None, result: CheckResult) -> None:
        if asked or path is None:
            return  # what was forced is not what runs
        if last is not None:
            last.store.set_fact(name, result.as_dict(), driver=driver)
            return
        # What was found is said all the same.
        with suppress(CacheError), Store.open(path) as store:
            store.set_fact(name, result.as_dict(), driver=driver)

    return keep


# -- bans --------------------------------------------------------------------------------------


def ban(engine: Engine, faults: Collection[Fault], result: CheckResult) -> None:
    """Ban what was wrong for the driver of ``engine``, and note it in ``result``.

    Raises :class:`~clkiln.errors.CacheError` where that can't be kept.
    """
    chooser = engine.runner.planner.chooser
    together = SHARING if engine.config.tied else SHARING[:2]
    workloads = {step.workload for step in steps_of(engine.runner)}
    banned: list[dict[str, str]] = []

    def add(rules: Rules) -> Rules:
        banned.clear()
        for fault in faults:
            if not rules.allows(fault.workload, fault.config, engine.device):
                continue  # banned with another of the faults, or by another process
            kind = chooser.variants.by_op.get(fault.workload.op)
            rules, what = rule_out(rules, fault, engine.device, together, kind, workloads)
            banned.append({"what": what, "reason": f"{fault.place}: {fault.message}"})
        return rules

    change_rules(engine.store, engine.device.driver_key, add)
    result.banned += banned


def rule_out(
    rules: Rules,
    fault: Fault,
    limits: DeviceLimits,
    together: Collection[str],
    kind: str | None,
    workloads: Collection[Workload] = (),
) -> tuple[Rules, str]:
    """``rules`` that forbid what was at fault, and what they forbid in words.

    The variant, if other ones (of ``kind``, where one was asked for) can run the workload and the
    others of the operation among the model's ``workloads``, as far as these can run now, and all of
    the operations ``together`` can still read a weight in one place. Else the configuration.
    """
    workload, config = fault.workload, fault.config
    op, name = workload.op, config.variant
    why = Ban(f"{fault.place}: {fault.message}", "check", SPECS[op].digest(), now())
    without = rules.ban(op, name, why)
    before, after = Capabilities(limits, rules), Capabilities(limits, without)

    def loses(other: Workload) -> bool:
        return not isinstance(after.find(other, kind), Config) and (
            other == workload or isinstance(before.find(other, kind), Config)
        )

    concerned = {workload, *(other for other in workloads if other.op == op)}
    if not any(map(loses, concerned)) and (op not in together or places(without, limits, together)):
        return without, f"{op}={name}"
    return rules.ban_config(workload, config, why), f"{workload} {config}"


# -- after the driver changed ------------------------------------------------------------------


def after_driver_change(
    engine: Engine, load: Callable[[], Engine], warn: Callable[[str], None]
) -> Engine:
    """The short check of a model's first run under a driver; the engine to be used from now on.

    Raises :class:`~clkiln.errors.UnsupportedOperation` where nothing is left that is right, or what
    is wrong could not be banned.
    """
    name = engine.device.name
    warn(f"the driver of {name} changed: checking this model once (--no-check skips it)")
    result, current = examine(engine, load, SHORT)
    for each in result.banned:
        warn(f"wrong here and banned: {each['what']} ({each['reason']})")
    if current is None:
        raise UnsupportedOperation(result.problem)
    if result.standing:
        current.close()  # rather no answer than a wrong one
        raise UnsupportedOperation(f"{result.problem} (--no-check runs it all the same)")
    if result.problem:
        warn(f"not checked to the end: {result.problem}")
    else:
        after = " after that" if result.banned else ""
        warn(
            f"checked in {result.seconds:.1f} s: {result.compared} of {result.launches} launches "
            f"compared with their references, all right{after}"
        )
    return current


def after_tuning(load: Callable[[], Engine], warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The short check at the end of a tuning run; its figures, for the run's summary.

    None, and a warning, where it can't be made: what was tuned is kept all the same.
    """
    try:
        result, left = examine(load(), load, SHORT)
    except ClkilnError as error:
        warn(f"tuned, but the model could not be checked: {error}")
        return None
    if left is not None:
        left.close()
    for each in result.banned:
        warn(f"wrong in the model and banned: {each['what']} ({each['reason']})")
    if result.problem:
        warn(f"the check found what it can't replace: {result.problem}")
    names = ("ok", "launches", "compared", "banned", "problem", "seconds")
    return {name: getattr(result, name) for name in names}
