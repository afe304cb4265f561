"""``clkiln run``: answer a prompt, warm from the cache file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .clock import since_process_start
from .common import note, print_json, rate, shared, warn

if TYPE_CHECKING:
    from ..inference.engine import Completion, Engine


@click.command("run")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option(
    "--temp", "--temperature", "temperature", type=click.FloatRange(0),
    help="0 is greedy.  [default: the model's own, else 0.7]",
)  # fmt: skip
@click.option("--top-k", type=click.IntRange(0), help="Keep the k likeliest tokens; 0: all.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Nucleus sampling.")
@click.option("--seed", type=click.IntRange(0), help="Repeat a sampled answer.")
@click.option("-c", "--ctx-size", type=click.IntRange(1), help="Context in tokens.")
@click.option("--raw", is_flag=True, help="Pass the prompt without the chat template.")
@click.option("--verbose", is_flag=True, help="Say which device, kernels and times, and why.")
@click.option("--require-cache", is_flag=True, help="Fail if anything would compile or fall back.")
@shared("device", "cache", "variant", "json")
def command(
    model: str,
    prompt: str | None,
    max_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    ctx_size: int | None,
    raw: bool,
    verbose: bool,
    require_cache: bool,
    device: str | None,
    cache: Path | None,
    variant: tuple[str, ...],
    as_json: bool,
) -> None:
    """Answer PROMPT with MODEL (a .gguf file or a catalog entry).

    Without PROMPT, standard input is the prompt.
    """
    from ..inference.engine import Engine

    text = _read_prompt() if prompt is None else prompt
    with Engine.load(
        model, device, cache, require_cache=require_cache, ctx_size=ctx_size, variant=variant,
        warn=warn,
    ) as engine:  # fmt: skip
        startup = since_process_start()
        stream = engine.stream(
            text, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            seed=seed, raw=raw,
        )  # fmt: skip
        for piece in stream:
            if not as_json:
                click.echo(piece, nl=False)
        if as_json:
            print_json(_result(engine, stream.completion, startup))
        else:
            click.echo()
        if verbose:
            _explain(engine, stream.completion, startup)


def _read_prompt() -> str:
    if sys.stdin.isatty():
        note("reading the prompt from standard input, end with Ctrl-D")
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on standard input is not UTF-8: {error.reason}") from error
    if not text.strip():
        raise UsageError("no prompt: give one as an argument or on standard input")
    return text


def _result(engine: Engine, completion: Completion, startup: float) -> dict[str, Any]:
    """The object of ``--json``; its fields are a contract."""
    runner = engine.runner
    counts = runner.loader.counts
    timing = completion.timing
    return {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "prompt_token_ids": completion.prompt_token_ids,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "device": engine.device.name,
        "programs": {"from_cache": counts.from_cache, "compiled": counts.compiled},
        "fallbacks": engine.fallbacks(),
        "timing": {
            "startup_s": startup,
            "first_token_s": startup + (timing["first_token_s"] or 0.0),
            "load_s": runner.weights_seconds,
            "program_load_s": counts.seconds,
            "slowest_first_launch_s": max(runner.planner.first_launches.values(), default=0.0),
            "prefill_tok_s": timing["prefill_tok_s"],
            "decode_tok_s": timing["decode_tok_s"],
        },
    }


def _explain(engine: Engine, completion: Completion, startup: float) -> None:
    """``--verbose``: what ran where, and what it cost, on standard error."""
    from ..inference.plan import origins

    runner, timing = engine.runner, completion.timing
    counts = runner.loader.counts
    chosen = origins(runner.planner.choices)
    parts = ", ".join(f"{count} {origin}" for origin, count in sorted(chosen.items()))
    slowest = max(runner.planner.first_launches.values(), default=0.0)
    note(f"device:     {engine.device.name} ({engine.device_reason})")
    note(f"driver:     {engine.device.platform_version} {engine.device.driver_version}")
    note(f"cache file: {engine.store.path or 'none, nothing is kept'}")
    note(f"kernels:    {parts}")
    note(
        f"programs:   {counts.from_cache} from the cache file, {counts.compiled} compiled, "
        f"{counts.seconds * 1e3:.0f} ms; slowest first launch {slowest * 1e3:.1f} ms over its next"
    )
    for line in engine.fallbacks():
        note(f"fallback:   {line}")
    note(
        f"start:      {startup:.2f} s, of which weights {runner.weights_seconds:.2f} s; "
        f"first token after {startup + (timing['first_token_s'] or 0):.2f} s"
    )
    note(
        f"prefill:    {len(completion.prompt_token_ids)} tokens, "
        f"{rate(timing['prefill_tok_s'])} tokens/s"
    )
    note(
        f"decode:     {len(completion.token_ids)} tokens, {rate(timing['decode_tok_s'])} tokens/s; "
        f"seed {completion.seed}"
    )
