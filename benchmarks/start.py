"""Seconds from process start to first token of a tuned model, over several fresh processes.

    python benchmarks/start.py MODEL [--device DEVICE] [--runs 20] [--json FILE]

Each process gets an empty driver cache, so that only clkiln's own cache file helps it. Prints the
medians of the parts that ``clkiln run --json`` reports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PARTS = ("startup_s", "first_token_s", "load_s", "program_load_s", "slowest_first_launch_s")
PROMPT = "What is the capital of France?"


def start(arguments: list[str]) -> dict[str, float]:
    """One process; returns its timing and the number of programs that it compiled."""
    with tempfile.TemporaryDirectory() as empty:
        env = {**os.environ, "POCL_CACHE_DIR": empty, "CUDA_CACHE_DISABLE": "1"}
        command = [sys.executable, "-m", "clkiln", "run", *arguments, PROMPT]
        options = ["--temp", "0", "-n", "1", "--json", "--require-cache"]
        done = subprocess.run(command + options, env=env, check=True, capture_output=True)
    result = json.loads(done.stdout)
    timing: dict[str, float] = {part: result["timing"][part] for part in PARTS}
    return timing | {"compiled": result["programs"]["compiled"]}


def medians(arguments: list[str], count: int) -> dict[str, float]:
    """Medians over ``count`` processes, the worst first launch, and all compiles together."""
    runs = [start(arguments) for _ in range(count)]
    found = {part: statistics.median(run[part] for run in runs) for part in PARTS}
    worst = max(run["slowest_first_launch_s"] for run in runs)
    compiled = sum(run["compiled"] for run in runs)
    return {"runs": count, **found, "worst_first_launch_s": worst, "compiled": compiled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the medians here as well")
    args = parser.parse_args()
    arguments = [args.model, *(["--device", args.device] if args.device else [])]
    found = medians(arguments, args.runs)
    for part, value in found.items():
        text = f"{value * 1e3:8.1f} ms" if part.endswith("_s") else f"{value:8.0f}"
        print(f"{part:<24}{text}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
