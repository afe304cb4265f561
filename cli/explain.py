"""``--verbose``: what ran where, and what it cost, on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import note, rate

if TYPE_CHECKING:
    from ..inference.engine import Completion, Engine


def explain_device(engine: Engine) -> None:
    """The device, its driver and cache file, and where the kernels' parameters come from."""
    from ..inference.plan import origins

    chosen = origins(engine.runner.planner.choices)
    parts = ", ".join(f"{count} {origin}" for origin, count in sorted(chosen.items()))
    note(f"device:     {engine.device.name} ({engine.device_reason})")
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
    note(
        f"prefill:    {len(completion.prompt_token_ids)} tokens, "
        f"{rate(timing['prefill_tok_s'])} tokens/s"
    )
    note(
        f"decode:     {len(completion.token_ids)} tokens, {rate(timing['decode_tok_s'])} tokens/s; "
        f"seed {completion.seed}"
    )
