"""Everything that the README's table says of one device: tune, bench, start; into one JSON file.

    python benchmarks/measure.py MODEL --device DEVICE [--level fast] --out FILE.json

It tunes into an empty cache file of its own: the figures are those of one level from scratch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from start import medians

ROOT = Path(__file__).resolve().parent.parent


def clkiln(*arguments: str) -> Any:
    """The JSON that a command prints; what it says besides goes to standard error."""
    command = [sys.executable, "-m", "clkiln", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def commit() -> str:
    """The commit that is checked out, with a mark if the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return os.environ.get("CLKILN_COMMIT") or done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device", required=True)
    parser.add_argument("--level", default="fast")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CLKILN_CACHE_DIR"] = folder
        where = ["--device", args.device]
        tuned = clkiln("tune", args.model, *where, "--level", args.level)
        benched = clkiln("bench", args.model, *where)
        started = medians([args.model, *where], args.runs)
    del tuned["cache_file"]
    result = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "tune": tuned,
        "bench": benched,
        "start": started,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    for row in benched:
        print(f"{row['test']}: {row['tok_s_mean']:.1f} ± {row['tok_s_std']:.1f} tokens/s")
    print(f"process start to first token: {started['first_token_s']:.2f} s")


if __name__ == "__main__":
    main()
