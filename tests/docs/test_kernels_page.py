"""The table of operations, held against the specs."""

from __future__ import annotations

import re
from pathlib import Path

from clkiln.kernels import SPECS

PAGE = Path(__file__).resolve().parents[2] / "docs/kernels.md"
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \|([^|]*)\|([^|]*)\|$", re.MULTILINE)


def test_every_operation_and_variant_is_in_the_table() -> None:
    rows = {
        op: {"buffer": re.findall(r"`(\w+)`", buffers), "image": re.findall(r"`(\w+)`", images)}
        for op, _, buffers, images in ROW.findall(PAGE.read_text(encoding="utf-8"))
    }
    held = {
        op: {
            kind: [v.name for v in spec.variants if v.kind == kind] for kind in ("buffer", "image")
        }
        for op, spec in SPECS.items()
    }
    assert rows == held
    assert list(rows) == sorted(rows)
