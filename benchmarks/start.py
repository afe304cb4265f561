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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the medians here as well")
    args = parser.parse_args()
    arguments = [args.model, *(["--device", args.device] if args.device else [])]
    runs = [start(arguments) for _ in range(args.runs)]
    medians = {part: statistics.median(run[part] for run in runs) for part in PARTS}
    for part, value in medians.items():
        worst = max(run[part] for run in runs)
        print(f"{part:<24}{value * 1e3:8.1f} ms median, {worst * 1e3:8.1f} ms worst")
    print(f"programs compiled in all runs: {sum(run['compiled'] for run in runs):.0f}")
    if args.json:
        args.json.write_text(json.dumps({"runs": args.runs, **medians}, indent=2) + "\n")


if __name__ == "__main__":
    main()
