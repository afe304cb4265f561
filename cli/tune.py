"""``clkiln tune``: search the best kernels of a model for a device, once."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ClkilnError, UsageError
from .common import note, print_json, rate, shared, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..cache.store import Store
    from ..inference.config import ModelConfig
    from ..kernels.uses import Use
    from ..kernels.variants import VariantRequest
    from ..runtime.device import Device
    from ..tuner.levels import Level
    from ..tuner.session import TuneResult


@click.command("tune")
@click.argument("model")
@click.option(
    "--level", type=click.Choice(["fast", "normal", "wide", "exhaustive"]), default="normal",
    show_default=True, help="How long to search: 45 s, 5 min, 30 min, everything.",
)  # fmt: skip
@click.option("--budget", metavar="TIME", help="End after this time, for example 90s or 5m.")
@click.option("--kernel", "kernels", multiple=True, metavar="NAME", help="Only this operation.")
@click.option("--force", is_flag=True, help="Search again what is done already.")
@click.option("--dry-run", is_flag=True, help="Say what would be searched, and how long.")
@shared("device", "cache", "variant", "json")
def command(
    model: str,
    level: str,
    budget: str | None,
    kernels: tuple[str, ...],
    force: bool,
    dry_run: bool,
    device: str | None,
    cache: Path | None,
    variant: tuple[str, ...],
    as_json: bool,
) -> None:
    """Search the best kernels of MODEL for a device and keep them in its cache file.

    Ctrl-C is safe: what was found is kept, and the next tune goes on from there.
    """
    from ..cache.paths import cache_file
    from ..cache.store import Store
    from ..inference.catalog import resolve
    from ..inference.choose import together
    from ..inference.config import ModelConfig
    from ..inference.devices import choose_device
    from ..inference.gguf import GGUFFile
    from ..inference.graph import Graph, uses
    from ..inference.runner import DEFAULT_KV
    from ..inference.weights import Weights
    from ..kernels.variants import VariantRequest
    from ..tuner.levels import LEVELS, parse_budget
    from ..tuner.record import undone

    seconds = parse_budget(budget) if budget is not None else None
    asked = VariantRequest.parse(variant)
    path = resolve(model)
    file = GGUFFile.open(path)
    config = ModelConfig.from_gguf(file)
    request = together(asked, config.tied)
    graph = Graph(config, Weights(file, config), DEFAULT_KV)
    every = uses(graph, config.context_length)
    wanted = _only(every, kernels)
    lacking = request.lacking(use.workload.op for use in wanted)
    if lacking:
        warn(f"no {request.default} variant, tuned as they are: {', '.join(lacking)}")
    chosen, why = choose_device(device, config.digest, warn)
    where = cache or cache_file(chosen.info.name, chosen.info.platform)
    if dry_run:
        _dry_run(wanted, chosen, request, LEVELS[level], seconds, as_json)
        return
    with Store.open(where, warn=warn) as store:
        todo = wanted
        if not force:
            todo = undone(store, chosen.info.driver_key, wanted, LEVELS[level], request)
        job = Job(path, config, chosen, store, where, LEVELS[level], seconds, force, request)
        if not todo:
            _done_already(job, wanted, as_json)
            return
        note(f"tuning {len(todo)} kernels of {config.name} for {chosen.info.name} ({why})")
        summary = job.run(todo, [use for use in every if use not in todo])
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary, _next_command(model, device, cache, variant))


class Job:
    """One tuning run from the command line, with its place in the cache file."""

    def __init__(
        self,
        model: Path,
        config: ModelConfig,
        device: Device,
        store: Store,
        where: Path,
        level: Level,
        seconds: float | None,
        force: bool,
        variants: VariantRequest,
    ) -> None:
        self.model, self.config, self.device, self.store = model, config, device, store
        self.where, self.level, self.seconds = where, level, seconds
        self.force, self.variants = force, variants

    def run(self, todo: Sequence[Use], others: Sequence[Use]) -> dict[str, Any]:
        """Tune ``todo``, measure the engine before and after, keep and return the figures.

        ``others`` are the model's uses besides.
        """
        from ..cache.rows import RunRow
        from ..tuner.session import TuningRun
        from .progress import progress_bar

        row = RunRow(self.config.name, self.level.name, self.device.info.driver_key, self.seconds)
        run_id = self.store.start_run(row)
        with progress_bar() as show:
            tuning = TuningRun(
                self.store, self.device.info, todo, self.level, others=others,
                seconds=self.seconds, force=self.force, variants=self.variants, run=run_id,
                progress=show,
            )  # fmt: skip
            try:
                result = tuning.run()
            except BaseException:
                tuning.result.defaults.clear()
                self.store.finish_run(run_id, tuning.result.seconds, _figures(tuning.result, {}))
                raise
        speeds = self._speeds(result)
        self.store.finish_run(run_id, result.seconds, _figures(result, speeds))
        return {
            "model": self.config.name,
            "device": self.device.info.name,
            "cache_file": str(self.where),
            "level": self.level.name,
            "already_done": False,
            "kernels": len(todo),
            "seconds": result.seconds,
            "trials": result.trials,
            "by_status": result.by_status,
            **speeds,
        }

    def _speeds(self, result: TuneResult) -> dict[str, float | None]:
        """Decode and prefill tokens per second with the safe defaults and with what was found."""
        from ..inference.devices import note_speed

        before: tuple[float | None, float | None] = (None, None)
        after = before
        try:
            after = self._speed(self.where)
            with tempfile.TemporaryDirectory() as folder:
                default = Path(folder) / "defaults.sqlite"
                self._write_defaults(default, result)
                before = self._speed(default)
        except ClkilnError as error:
            warn(f"tuned, but the whole model could not be measured: {error}")
        decode, prefill = after
        if decode is not None and not str(self.variants):
            driver = self.device.info.driver_key
            note_speed(self.store, driver, self.config, decode, prefill, tuned=True)
        return {
            "decode_before": before[0],
            "decode_after": after[0],
            "prefill_before": before[1],
            "prefill_after": after[1],
        }

    def _write_defaults(self, path: Path, result: TuneResult) -> None:
        from ..cache.store import Store

        with Store.open(path) as store:
            for key, (label, binary) in result.defaults.items():
                store.put_binary(key, binary, label=label, driver=self.device.info.driver_key)

    def _speed(self, cache: Path) -> tuple[float, float]:
        from ..inference.engine import Engine
        from ..inference.speed import measure_decode, measure_prefill

        variant = [f"{op}={kind}" for op, kind in self.variants.by_op.items()]
        if self.variants.default:
            variant.append(self.variants.default)
        with Engine.load(
            self.model, self.device, cache, variant=variant, warn=lambda text: None
        ) as engine:
            decode = measure_decode(engine, 32, 3).median
            return decode, measure_prefill(engine, 256, 2).median


def _only(found: list[Use], kernels: tuple[str, ...]) -> list[Use]:
    if not kernels:
        return found
    ops = sorted({use.workload.op for use in found})
    for name in kernels:
        if name not in ops:
            raise UsageError(f"no kernel {name!r} in this model; it has {', '.join(ops)}")
    return [use for use in found if use.workload.op in kernels]


def _figures(result: TuneResult, speeds: dict[str, float | None]) -> dict[str, Any]:
    return {**speeds, "trials": result.trials, "by_status": result.by_status}


def _done_already(job: Job, wanted: Sequence[Use], as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "model": job.config.name,
                "device": job.device.info.name,
                "cache_file": str(job.where),
                "level": job.level.name,
                "already_done": True,
                "kernels": len(wanted),
                "trials": 0,
            }
        )
        return
    click.echo(
        f"nothing to do: all {len(wanted)} kernels of {job.config.name} are tuned at level "
        f"{job.level.name} for {job.device.info.name} (--force searches again)"
    )


def _next_command(
    model: str, device: str | None, cache: Path | None, variant: tuple[str, ...]
) -> str:
    """The ``clkiln run`` that uses what was just tuned, ready for a shell."""
    words = ["clkiln", "run", model]
    words += ["--device", device] if device else []
    words += ["--cache", str(cache)] if cache else []
    for kind in variant:
        words += ["--variant", kind]
    return f'{shlex.join(words)} "What is the capital of France?"'


def _print_summary(summary: dict[str, Any], following: str) -> None:
    trials, seconds = summary["trials"], summary["seconds"]
    click.echo(
        f"tuned {summary['kernels']} kernels in {seconds:.0f} s ({trials} trials): "
        f"decode {rate(summary['decode_before'])} -> {rate(summary['decode_after'])} tokens/s, "
        f"prefill {rate(summary['prefill_before'])} -> {rate(summary['prefill_after'])} tokens/s; "
        f"kept in {summary['cache_file']}; next: {following}"
    )


def _dry_run(
    wanted: Sequence[Use],
    device: Device,
    variants: VariantRequest,
    level: Level,
    seconds: float | None,
    as_json: bool,
) -> None:
    """What a run would search: workloads, feasible configurations, estimated time."""
    from ..kernels import SPECS
    from ..tuner.session import SECONDS_PER_TRIAL

    rows, total = [], 0
    for use in wanted:
        spec, kind = SPECS[use.workload.op], variants.kind(use.workload.op)
        feasible = len(spec.feasible(use.workload, device.info, kind))
        rows.append({"workload": str(use.workload), "phase": use.phase, "feasible": feasible})
        total += feasible
    limits = [s for s in (level.seconds, seconds, total * SECONDS_PER_TRIAL) if s is not None]
    if as_json:
        print_json({"device": device.info.name, "level": level.name, "workloads": rows,
                    "feasible": total, "estimated_s": min(limits)})  # fmt: skip
        return
    for row in rows:
        click.echo(f"{row['feasible']:6}  {row['workload']}")
    click.echo(
        f"{total} feasible configurations of {len(rows)} kernels on {device.info.name}; "
        f"level {level.name} would take about {min(limits):.0f} s"
    )
