"""``--verbose``: what ran where, and what it cost, on standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .common import note, rate

if TYPE_CHECKING:
    from ..inference.completion import Completion, TokenLogprob
    from ..inference.engine import Engine

_WIDTH = 80


def explain_device(engine: Engine) -> None:
    """The device, its driver and cache file, and where the kernels' parameters come from."""
    from ..inference.plan import origins

    chosen = origins(engine.runner.planner.choices)
    parts = ", ".join(f"{count} {origin}" for origin, count in sorted(chosen.items()))
    note(f"device:     {engine.device.name} ({engine.device_reason})")
    if engine.device.limits:
        note(f"limited:    {', '.join(map(str, engine.device.limits.entries))}")
    note(f"driver:     {engine.device.platform_version} {engine.device.driver_version}")
    note(f"cache file: {engine.store.path or 'none, nothing is kept'}")
    note(f"kernels:    {parts}")


def explain_programs(engine: Engine) -> None:
    """What was compiled, and what does not run as tuned; complete only after an answer."""
    counts = engine.runner.loader.counts
    slowest = max(engine.runner.planner.first_launches.values(), default=0.0)
    note(
        f"programs:   {counts.from_cache} from the cache file, {counts.compiled} compiled, "
        f"{counts.seconds * 1e3:.0f} ms; slowest first launch {slowest * 1e3:.1f} ms over its next"
    )
    for line in engine.fallbacks():
        note(f"fallback:   {line}")


def explain_answer(completion: Completion) -> None:
    """Tokens and speeds of one answer."""
    timing = completion.timing
    reused = f" and {completion.reused} reused" if completion.reused else ""
    prefill, decode = (timing.get(f"{phase}_tok_s") for phase in ("prefill", "decode"))
    note(f"prefill:    {completion.prefilled} tokens{reused}, {rate(prefill)} tokens/s")
    note(
        f"decode:     {len(completion.token_ids)} tokens, {rate(decode)} tokens/s; "
        f"seed {completion.seed}"
    )


def explain_likelihood(tokens: Sequence[TokenLogprob]) -> None:
    """A line for each token of an answer: how likely it was, and what was likely in its place."""
    note(f"{'token':<20}{'logprob':>9}{'share':>8}  likeliest")
    for token in tokens:
        head = f"{token.text!r:<20}{token.logprob:>9.3f}{math.exp(token.logprob):>8.1%}  "
        lines = [head]
        for other in token.top:
            text = f"{other.text!r} {math.exp(other.logprob):.1%}  "
            if len(lines[-1]) + len(text.rstrip()) > _WIDTH:
                lines.append(" " * len(head))
            lines[-1] += text
        for line in lines:
            note(line.rstrip())
