"""Reductions come from one place: no other kernel file sums over a work-group by itself."""

from __future__ import annotations

import re
from pathlib import Path

import clkiln.kernels

ROOM = Path(clkiln.kernels.__file__).parent
#: A loop that halves a number of work-items, or that adds up what several parts laid down.
TREE = re.compile(r"for \(int \w+ = (LX|GROUP_SIZE|\w+ / 2)[^;]*; \w+ > 0; \w+ (/= 2|>>= 1)\)")
#: Who uses barriers for something else: tiles that all items of a group lay down together.
TILES = {
    "attention_prefill/attention_prefill.cl",
    "conv2d/tiled.clh",
    "gemm/tiled.clh",
    "transpose/transpose.cl",
}


def test_only_one_file_reduces_and_only_tiles_have_barriers_of_their_own() -> None:
    with_barriers = set()
    for path in sorted(p for p in ROOM.rglob("*.cl*") if p.suffix in (".cl", ".clh")):
        name = path.relative_to(ROOM).as_posix()
        code = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
        if name != "reduce.clh" and name != "vec.clh":  # across a vector's elements, not items
            assert not TREE.search(code), f"{name} reduces by itself: use reduce.clh"
        if "barrier(" in code:
            with_barriers.add(name)
    assert with_barriers == TILES | {"reduce.clh"}
