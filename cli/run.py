"""``clkiln run``: answer a prompt, warm from the cache file."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .clock import since_process_start
from .common import model_argument, note, print_json, say, shared, warn
from .explain import explain_answer, explain_device, explain_likelihood, explain_programs
from .generation import loading, sampling, system_option

if TYPE_CHECKING:
    from ..inference.completion import Completion
    from ..inference.engine import Engine


@click.command("run")
@model_argument
@click.argument("prompt", required=False)
@click.option("-f", "--file", type=click.Path(exists=True, dir_okay=False, allow_dash=True),
              help="Read the prompt from FILE; - is standard input.", metavar="FILE")  # fmt: skip
@system_option
@sampling
@click.option("--logprobs", type=click.IntRange(0), metavar="N",
              help="Say how likely each token was, and the N likeliest.")  # fmt: skip
@click.option("--raw", is_flag=True, help="Pass the prompt without the chat template.")
@click.option("--verbose", is_flag=True, help="Say which device, kernels and times, and why.")
@loading
@shared("json")
def command(
    model: str,
    prompt: str | None,
    file: str | None,
    system: str | None,
    logprobs: int | None,
    raw: bool,
    verbose: bool,
    as_json: bool,
    sampling: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Answer PROMPT with MODEL (a .gguf file, a model directory or a catalog entry).

    Without PROMPT and --file, standard input is the prompt; on a terminal a chat begins (see
    clkiln chat), unless --raw, --json or --logprobs ask for one answer. One line break at the end
    of a file or of standard input is no part of the prompt.
    """
    if raw and system is not None:
        raise UsageError("--raw has no place for --system: write it into the prompt")
    single = raw or as_json or logprobs is not None
    if prompt is None and file is None and sys.stdin.isatty() and not single:
        from .chat import chat
        from .conversation import Conversation

        chat(model, Conversation(system), sampling, loading, verbose=verbose)
        return
    from ..inference.engine import Engine

    text = _prompt(prompt, file)
    with Engine.load(model, **loading, warn=warn) as engine:
        startup = since_process_start()
        stream = engine.stream(text, raw=raw, system=system, logprobs=logprobs, **sampling)
        for piece in stream:
            if not as_json:
                say(piece)
        if as_json:
            print_json(_result(engine, stream.completion, startup))
        else:
            click.echo()
            if stream.completion.logprobs is not None:
                explain_likelihood(stream.completion.logprobs)
        if verbose:
            _explain(engine, stream.completion, startup)


def _prompt(prompt: str | None, file: str | None) -> str:
    if prompt is not None:
        if file is not None:
            raise UsageError(f"two prompts, PROMPT and --file {file}: give one of them")
        return prompt
    where = "on standard input" if file in (None, "-") else f"in {file}"
    try:
        text = _standard_input() if file in (None, "-") else _content(Path(str(file)))
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt {where} is not UTF-8: {error.reason}") from error
    if not text.strip():
        hint = ": give one as an argument or on standard input" if file is None else f" {where}"
        raise UsageError(f"no prompt{hint}")
    return text.removesuffix("\n")


def _content(path: Path) -> str:
    try:
        # A file from elsewhere may begin with a byte order mark.
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read the prompt in {path}: {error.strerror}") from error


def _standard_input() -> str:
    if sys.stdin.isatty():
        note("reading the prompt from standard input, end with Ctrl-D")
    return sys.stdin.read()


def _result(engine: Engine, completion: Completion, startup: float) -> dict[str, Any]:
    """The object of ``--json``; its fields are a contract."""
    runner = engine.runner
    counts = runner.loader.counts
    timing = completion.timing
    result: dict[str, Any] = {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "prompt_token_ids": completion.prompt_token_ids,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "device": engine.device.name,
        "limits": engine.device.limits.as_list(),
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
    if completion.logprobs is not None:
        result["logprobs"] = [
            {**asdict(token), "top": [other._asdict() for other in token.top]}
            for token in completion.logprobs
        ]
    return result


def _explain(engine: Engine, completion: Completion, startup: float) -> None:
    explain_device(engine)
    explain_programs(engine)
    note(
        f"start:      {startup:.2f} s, of which weights {engine.runner.weights_seconds:.2f} s; "
        f"first token after {startup + (completion.timing['first_token_s'] or 0):.2f} s"
    )
    explain_answer(completion)
