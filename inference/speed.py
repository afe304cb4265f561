"""Measuring an engine's prefill and decode speed, for ``bench`` and for the end of ``tune``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..kernels import SPECS
from .buckets import CHUNK, context_bucket, token_bucket
from .engine import Engine
from .graph import Step


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one test over ``repeats`` runs, and what a second moves and computes.

    ``bytes_per_token`` and ``flops_per_token`` are the least that the kernels' definitions ask
    for, summed over the step and divided by its tokens.
    """

    test: str
    n_prompt: int
    n_gen: int
    runs: tuple[float, ...]
    bytes_per_token: float
    flops_per_token: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.runs)

    @property
    def std(self) -> float:
        return statistics.stdev(self.runs) if len(self.runs) > 1 else 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.runs)


def measure_prefill(engine: Engine, tokens: int, repeats: int) -> Speed:
    """Tokens per second of a prompt of ``tokens`` random ids, after one warm-up."""
    prompt = _random_ids(engine, tokens)

    def once() -> float:
        engine.runner.reset()
        engine.runner.feed(prompt)
        engine.runner.context.finish()
        return tokens

    return _speed(engine, f"pp{tokens}", tokens, 0, once, repeats, _prefill_steps(engine, tokens))


def measure_decode(engine: Engine, tokens: int, repeats: int) -> Speed:
    """Tokens per second of ``tokens`` greedy steps from one token on, after one warm-up."""
    start = _random_ids(engine, 1)

    def once() -> float:
        runner = engine.runner
        runner.reset()
        runner.feed(start)
        runner.pick(0)
        begin = time.perf_counter()
        for step in range(tokens):
            runner.feed_pick()
            runner.pick(step + 1)
        return -(time.perf_counter() - begin) / tokens  # the prompt's token does not count

    graph = engine.runner.graph
    body = graph.body(1, context_bucket(tokens + 1))
    # On average half of the positions are there to attend to.
    steps = [[*(_resized(step, 1, 1 + tokens // 2) for step in body), *graph.head()]]
    return _speed(engine, f"tg{tokens}", 0, tokens, once, repeats, steps)


def _speed(
    engine: Engine,
    test: str,
    n_prompt: int,
    n_gen: int,
    once: Callable[[], float],
    repeats: int,
    passes: Sequence[Sequence[Step]],
) -> Speed:
    """``once`` returns the tokens it processed, or minus the seconds a token took."""
    once()
    engine.runner.loader.keep_fresh()
    runs = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = once()
        runs.append(result / (time.perf_counter() - begin) if result > 0 else -1 / result)
    steps = [step for steps in passes for step in steps]
    per = n_prompt or 1
    return Speed(
        test,
        n_prompt,
        n_gen,
        tuple(runs),
        sum(SPECS[s.workload.op].bytes(s.workload) for s in steps) / per,
        sum(SPECS[s.workload.op].flops(s.workload) for s in steps) / per,
    )


def _prefill_steps(engine: Engine, tokens: int) -> list[list[Step]]:
    """The steps of each chunk at its own size, and the head."""
    graph, passes = engine.runner.graph, []
    for start in range(0, tokens, CHUNK):
        m = min(CHUNK, tokens - start)
        bucket = list(graph.body(token_bucket(m), context_bucket(start + m)))
        passes.append([_resized(step, m, start + m) for step in bucket])
    return [*passes, list(graph.head())]


def _resized(step: Step, m: int, ctx: int) -> Step:
    """``step`` at its real sizes instead of its buckets'."""
    names = dict(step.workload.items)
    sizes = {name: value for name, value in (("m", m), ("ctx", ctx)) if name in names}
    return Step(step.workload.replace(**sizes), step.tensors)


def _random_ids(engine: Engine, count: int) -> list[int]:
    ids = np.random.default_rng(0).integers(0, engine.config.vocab, count)
    return [int(i) for i in ids]
