"""``clkiln tune``: search the best kernels of a model for a device, once."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import alone, echo, note, print_json, rate, shared, warn
from .completers import models, operations
from .values import FilePath

if TYPE_CHECKING:
    from ..api import TuneSummary


@click.command("tune")
@click.argument("model", required=False, shell_complete=models)
@click.option(
    "--level", type=click.Choice(["fast", "normal", "wide", "exhaustive"]), default="normal",
    show_default=True, help="How long to search: 45 s, 5 min, 30 min, everything.",
)  # fmt: skip
@click.option("--budget", metavar="TIME", help="End after this time, for example 90s or 5m.")
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    metavar="NAME",
    shell_complete=operations,
    help="Only this operation.",
)
@click.option("--force", is_flag=True, help="Search again what is done already.")
@click.option(
    "--no-check", "check", flag_value=False, default=True,
    help="Don't compare the model's launches with NumPy at the end.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be searched, and how long.")
@click.option(
    "--simulate", metavar="FILE", type=FilePath(),
    help="Search a recorded space instead, without a device: a Kernel Tuner cache file or T4 "
    "results.",
)  # fmt: skip
@click.option(
    "--export", nargs=2, metavar="t4 FILE",
    type=(click.Choice(["t4"]), FilePath()),
    help="Write the trials on file as T4 results instead.",
)  # fmt: skip
@shared("quantize", "device", "cache", "variant", "limits", "json")
def command(
    model: str | None,
    level: str,
    budget: str | None,
    kernels: tuple[str, ...],
    force: bool,
    check: bool,
    dry_run: bool,
    simulate: Path | None,
    export: tuple[str, Path] | None,
    quantize: str | None,
    device: str | None,
    cache: Path | None,
    variant: tuple[str, ...],
    limits: tuple[str, ...],
    as_json: bool,
) -> None:
    """Search the best kernels of MODEL for a device and keep them in its cache file.

    Without MODEL it searches standard shapes, those of common models' layers: a model that was
    never tuned then runs with what was best for the shapes most like its own.

    Ctrl-C is safe: what was found is kept, and the next tune goes on from there.
    """
    if simulate is not None:
        alone("--simulate", model=model, device=device, variant=variant, limits=limits,
               kernel=kernels, force=force, dry_run=dry_run, quantize=quantize,
               export=export)  # fmt: skip
        from .simulate import simulate as simulate_file

        simulate_file(simulate, level, budget, cache, as_json)
        return
    if export is not None:
        alone("--export", model=model, variant=variant, limits=limits, force=force,
               dry_run=dry_run, budget=budget, quantize=quantize)  # fmt: skip
        from .simulate import export as export_trials

        export_trials(export[1], cache, device, kernels, as_json)
        return
    from ..api import TuningJob
    from .progress import progress_bar

    with TuningJob(
        model, device, cache, level=level, budget=budget, kernels=kernels, variant=variant,
        limits=limits, force=force, quantize=quantize, check=check, warn=warn,
    ) as job:  # fmt: skip
        if dry_run:
            _print_preview(job.preview(), as_json)
            return
        if job.todo:
            name = job.device.info.name
            note(f"tuning {len(job.todo)} kernels of {job.name} for {name} ({job.why})")
        with progress_bar() as show:
            summary = job.run(show)
    if as_json:
        print_json(summary.as_dict())
    else:
        following = _next_command(model or "MODEL", device, cache, variant, limits, quantize)
        _print_summary(summary, following)


def _next_command(
    model: str,
    device: str | None,
    cache: Path | None,
    variant: tuple[str, ...],
    limits: tuple[str, ...],
    quantize: str | None,
) -> str:
    """The ``clkiln run`` that uses what was just tuned, ready for a shell."""
    words = ["clkiln", "run", model]
    words += ["--device", device] if device else []
    words += ["--cache", str(cache)] if cache else []
    for kind in variant:
        words += ["--variant", kind]
    for name in limits:
        words += ["--limits", name]
    words += ["--quantize", quantize] if quantize else []
    return f'{shlex.join(words)} "What is the capital of France?"'


def _print_summary(summary: TuneSummary, following: str) -> None:
    if summary.already_done:
        echo(
            f"nothing to do: all {summary.kernels} kernels of {summary.model} are tuned at level "
            f"{summary.level} for {summary.device} (--force searches again)"
        )
        return
    if summary.check and summary.check["ok"]:
        found = summary.check
        note(
            f"checked in {found['seconds']:.1f} s: {found['compared']} of {found['launches']} "
            f"launches of the model compared with their references, right"
        )
    echo(
        f"tuned {summary.kernels} kernels in {summary.seconds:.0f} s ({summary.trials} trials): "
        f"{_gain(summary)}kept in {summary.cache_file}; next: {following}"
    )


def _gain(summary: TuneSummary) -> str:
    """What it brought: to the model, or without one to the kernels; with what goes behind it."""
    from ..api import STANDARD

    if summary.speedup is not None:
        return f"{summary.speedup:.2f} times as quick as safe defaults (geometric mean); "
    if summary.model == STANDARD:
        return ""
    return (
        f"decode {rate(summary.decode_before)} -> {rate(summary.decode_after)} tokens/s, "
        f"prefill {rate(summary.prefill_before)} -> {rate(summary.prefill_after)} tokens/s; "
    )


def _print_preview(preview: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(preview)
        return
    for row in preview["workloads"]:
        echo(f"{row['feasible']:6}  {row['workload']}")
    echo(
        f"{preview['feasible']} feasible configurations of {len(preview['workloads'])} kernels on "
        f"{preview['device']}; level {preview['level']} would take about "
        f"{preview['estimated_s']:.0f} s"
    )
