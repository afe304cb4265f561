"""``clkiln bench``: prefill and decode speed of a model on a device."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..errors import UsageError
from .common import echo, model_argument, print_json, shared, warn

if TYPE_CHECKING:
    from ..inference.engine import Engine
    from ..inference.speed import Speed


@click.command("bench")
@model_argument
@click.option("-p", "prompt", type=click.IntRange(0), default=512, show_default=True,
              help="Prompt tokens; 0: no such test.")  # fmt: skip
@click.option("-n", "tokens", type=click.IntRange(0), default=128, show_default=True,
              help="Tokens to decode; 0: no such test.")  # fmt: skip
@click.option("-r", "repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("-o", "form", type=click.Choice(["md", "json", "csv"]), default="md",
              show_default=True, help="Output.")  # fmt: skip
@shared("quantize", "device", "cache", "variant", "limits", "json")
def command(
    model: str,
    prompt: int,
    tokens: int,
    repeats: int,
    form: str,
    quantize: str | None,
    device: str | None,
    cache: Path | None,
    variant: tuple[str, ...],
    limits: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure how fast MODEL reads prompts (pp) and generates (tg) on a device."""
    from ..inference.engine import Engine
    from ..inference.speed import measure_decode, measure_prefill

    if not prompt and not tokens:
        raise UsageError("nothing to measure: -p and -n are both 0")
    context = max(prompt, tokens + 1)
    with Engine.load(
        model, device, cache, ctx_size=context, quantize=quantize, variant=variant, limits=limits,
        warn=warn,
    ) as engine:  # fmt: skip
        speeds = [measure_prefill(engine, prompt, repeats)] if prompt else []
        speeds += [measure_decode(engine, tokens, repeats)] if tokens else []
        rows = [_row(engine, speed) for speed in speeds]
        if not variant:
            _keep(engine, rows)
    if as_json or form == "json":
        print_json(rows)
    elif form == "csv":
        _print_csv(rows)
    else:
        _print_markdown(rows)


def _row(engine: Engine, speed: Speed) -> dict[str, Any]:
    from ..tuner.roofs import read_roof

    roof = read_roof(engine.store, engine.device.driver_key)
    moved, done = speed.bytes_per_token * speed.mean, speed.flops_per_token * speed.mean
    return {
        "test": speed.test,
        "n_prompt": speed.n_prompt,
        "n_gen": speed.n_gen,
        "tok_s_mean": speed.mean,
        "tok_s_std": speed.std,
        "gb_s": moved / 1e9,
        "bandwidth_share": moved / roof.bytes_per_s if roof.bytes_per_s else None,
        "gflop_s": done / 1e9,
        "arithmetic_share": done / roof.flops_per_s if roof.flops_per_s else None,
        "device": engine.device.name,
        "driver_version": engine.device.driver_version,
        "limits": str(engine.device.limits),
        "model": engine.config.name,
        "tuned": engine.tuned,
        "version": __version__,
    }


def _keep(engine: Engine, rows: list[dict[str, Any]]) -> None:
    """Note the speeds: the device that is quickest for a model is its default."""
    from ..inference.devices import note_speed

    speeds = {row["test"][:2]: row["tok_s_mean"] for row in rows}
    if "tg" in speeds:
        note_speed(
            engine.store, engine.device.driver_key, engine.config, speeds["tg"],
            speeds.get("pp"), tuned=engine.tuned,
        )  # fmt: skip


def _print_csv(rows: list[dict[str, Any]]) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    click.echo(out.getvalue(), nl=False)


def _print_markdown(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    state = "tuned" if first["tuned"] else "not tuned"
    echo(f"{first['model']} on {first['device']} ({first['driver_version']}), {state}\n")
    echo("| test | tokens/s | GB/s | of bandwidth | GFLOP/s | of arithmetic |")
    echo("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        speed = f"{row['tok_s_mean']:.1f} ± {row['tok_s_std']:.1f}"
        echo(
            f"| {row['test']} | {speed} | {row['gb_s']:.1f} | {_share(row['bandwidth_share'])} "
            f"| {row['gflop_s']:.0f} | {_share(row['arithmetic_share'])} |"
        )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
