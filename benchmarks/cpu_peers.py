"""Decode and prefill speed beside llama.cpp, interleaved, on one model file and one machine.

    pip install llama-cpp-python
    python benchmarks/cpu_peers.py MODEL.gguf [--device DEVICE] [--repeats 5] [--json FILE]

Each round measures both engines once, so that what else the machine does hits both alike; medians
and the ratio of medians are printed. Both use as many threads as there are cores. llama.cpp reads
the same file; prompt and tokens are as many as ours. ``-p 0`` or ``-n 0`` leaves a test out.

Where a virtual machine forbids AMX, llama.cpp built for the processor at hand crashes in prefill;
``CMAKE_ARGS="-DCMAKE_C_FLAGS='-mno-amx-int8 -mno-amx-tile -mno-amx-bf16' ..."`` (and the same for
CMAKE_CXX_FLAGS) when it is installed builds it without.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clkiln
from clkiln.inference.speed import measure_decode, measure_prefill


class LlamaCpp:
    """llama.cpp through its low-level Python binding: evaluates ids, no sampling, no text."""

    def __init__(self, model: Path, context: int) -> None:
        from llama_cpp import Llama

        cores = len(os.sched_getaffinity(0))
        self.model = Llama(
            str(model), n_ctx=context, n_threads=cores, n_threads_batch=cores, verbose=False
        )

    def prefill(self, tokens: int) -> float:
        ids = [1 + i % 1000 for i in range(tokens)]
        self.model.reset()
        start = time.perf_counter()
        self.model.eval(ids)
        return tokens / (time.perf_counter() - start)

    def decode(self, tokens: int) -> float:
        self.model.reset()
        self.model.eval([1])
        start = time.perf_counter()
        for i in range(tokens):
            self.model.eval([1 + i])
        return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    context = args.prompt + args.tokens + 1
    peer = LlamaCpp(args.model, context)
    with clkiln.Engine.load(args.model, args.device, args.cache, ctx_size=context) as engine:
        tests: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
            f"tg{args.tokens}": (
                lambda: measure_decode(engine, args.tokens, 1).median,
                lambda: peer.decode(args.tokens),
            ),
            f"pp{args.prompt}": (
                lambda: measure_prefill(engine, args.prompt, 1).median,
                lambda: peer.prefill(args.prompt),
            ),
        }
        figures: dict[str, Any] = {
            "device": engine.device.name,
            "driver_version": engine.device.driver_version,
            "tuned": engine.tuned,
            "model": engine.config.name,
            "version": clkiln.__version__,
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        }
        print(f"{figures['model']} on {figures['device']}, tuned: {figures['tuned']}")
        for name, (ours, theirs) in tests.items():
            if int(name[2:]) == 0:
                continue
            theirs()  # the first evaluation allocates
            rounds = [(ours(), theirs()) for _ in range(args.repeats)]
            mine, other = (statistics.median(column) for column in zip(*rounds, strict=True))
            figures[name] = {"clkiln": mine, "llama.cpp": other, "ratio": mine / other}
            ratio = f"x{mine / other:.2f}"
            print(f"{name}: clkiln {mine:.1f} tok/s, llama.cpp {other:.1f} tok/s, {ratio}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
