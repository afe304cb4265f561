"""A newcomer's walk: the README's commands, in order, in a fresh clone, as one shell script.

``python tests/walk.py [FOLDER]`` (or ``make walk``) clones this checkout's last commit into FOLDER,
or a temporary one, with a home folder of its own, and ends with 0 if every command did. Standard
library only: a newcomer has nothing else.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

from clk_docs import blocks  # noqa: E402

#: What a newcomer's shell does not have set.
FOREIGN = ("CLKILN_", "VIRTUAL_ENV", "PYTHON")


def script() -> str:
    """The README's commands; each is shown before it runs, and the first that fails ends it."""
    commands = [c for block in blocks(ROOT / "README.md") for c in block.commands]
    shown = [f"echo {shlex.quote('$ ' + c)} >&2\n{c}" for c in commands]
    return "\n".join(["set -eo pipefail", *shown])


def walk(folder: Path) -> int:
    clone, home = folder / "clkiln", folder / "home"
    home.mkdir(parents=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    mine = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    done = subprocess.run(
        ["bash", "-c", script()],
        cwd=clone,
        env={**mine, "HOME": str(home), "XDG_DATA_HOME": str(home / "data")},
        stdin=subprocess.DEVNULL,
    )
    return done.returncode


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(walk(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as name:
        sys.exit(walk(Path(name)))
