"""How alike two workloads are, as far as the best configuration goes.

One measure for all who transfer parameters: an engine that was never tuned for its own shapes, and
a search that starts from what was best elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import inf, log2
from typing import TypeVar

from .types import Value, Workload

T = TypeVar("T")

#: Sizes that vary at run time. A kernel takes the real ones from its state buffer, so workloads
#: that differ in nothing else mostly share one program.
VARYING = ("m", "ctx")
#: Beyond this distance (a factor of 2 in one size is 1) a safe default is as good a guess.
FAR = 6.0

#: What a factor of 2 in a size counts; 1 where nothing else is said. The length of a head decides
#: about registers and vectors, the number of key-value heads only about how many groups there are.
_SIZES = {"head_dim": 2.0, "kv_heads": 0.5, "rope_dim": 0.5}
#: What another value of a tag counts; 1 where nothing else is said. A bias or a sum behind the
#: product costs next to nothing, and the summand of a norm costs nothing.
_TAGS = {"bias": 0.1, "eps": 0.01, "style": 0.25, "norm": 0.5}
#: ``swiglu`` reads two rows for one result; the others change what is done with a result.
_SAME_FUSE, _OTHER_FUSE = 0.1, 1.0
#: What a workload has only with something fused into it, or as a piece of a larger weight (``of``);
#: without an entry it has none. Such an item counts little beside the operation itself, and that
#: the other lacks it counts nothing: the tag that says so (``norm``, ``fuse``) counts.
_FUSED = {
    "gemv": ("norm", "eps", "heads", "kv_heads", "head_dim", "rope_dim", "kv", "style", "of"),
    "gemm": ("of",),
    "embedding": ("of",),
    "rope": ("norm", "eps"),
}
_FUSED_SHARE = 0.1
#: Another coding of weights, and one that is of another kind (floats, or codes and scales).
_OTHER_CODING, _OTHER_KIND = 0.5, 1.0
#: The least that any difference counts: only equal workloads are at distance 0.
_LEAST = 1e-6


def distance(a: Workload, b: Workload) -> float:
    """How far ``a`` and ``b`` lie apart: symmetric, 0 only if they are equal.

    A sum of weighted differences of the logarithms (base 2) of sizes, and of penalties for tags
    that differ. Infinite for different operations, or where one has an item that the other lacks
    and that does not come with something fused.
    """
    if a == b:
        return 0.0
    one, two = _features(a), _features(b)
    fused = _FUSED.get(a.op, ())
    if a.op != b.op or not (one.keys() ^ two.keys()) <= {*fused}:
        return inf
    total = 0.0
    for name in sorted(one.keys() | two.keys()):
        if name not in one or name not in two:
            total += _TAGS["norm"] if name == "norm" else _LEAST
        elif one[name] != two[name]:
            gap = _gap(name, one[name], two[name])
            total += gap * _FUSED_SHARE if name in fused else gap
    return total


def nearest(
    workload: Workload, others: Iterable[tuple[Workload, T]], most: float = FAR
) -> list[tuple[Workload, T]]:
    """Those of ``others`` that are at most ``most`` away from ``workload``, nearest first."""
    near = [(distance(workload, other), str(other), other, extra) for other, extra in others]
    near.sort(key=lambda entry: entry[:2])
    return [(other, extra) for far, _, other, extra in near if far <= most]


def _features(workload: Workload) -> Mapping[str, Value | float]:
    """The items, but with the query heads of a key-value head in place of all query heads."""
    items: dict[str, Value | float] = dict(workload.items)
    heads, kv_heads = items.get("heads"), items.get("kv_heads")
    if isinstance(heads, int) and isinstance(kv_heads, int) and kv_heads > 0:
        items["heads"] = heads / kv_heads
    return items


def _gap(name: str, x: Value | float, y: Value | float) -> float:
    if isinstance(x, str) or isinstance(y, str):
        return _tag_gap(name, str(x), str(y)) if isinstance(x, str) and isinstance(y, str) else inf
    if x <= 0 or y <= 0:
        return inf
    return _LEAST + _SIZES.get(name, 1.0) * abs(log2(x) - log2(y))


def _tag_gap(name: str, x: str, y: str) -> float:
    if name == "fuse":
        return _OTHER_FUSE if "swiglu" in (x, y) else _SAME_FUSE
    if name == "w":
        return _coding_gap(x, y)
    return _TAGS.get(name, 1.0)


def _coding_gap(x: str, y: str) -> float:
    """Codings of as many bits are alike; a kernel that reads twice the bytes is another matter."""
    other_kind = x.startswith(("f", "bf")) != y.startswith(("f", "bf"))
    gap = _OTHER_CODING + abs(log2(_bits(x)) - log2(_bits(y)))
    return gap + _OTHER_KIND if other_kind else gap


def _bits(coding: str) -> int:
    """Bits of a weight without its share of scales: the number in the coding's name."""
    match = re.search(r"[1-9]\d*", coding)
    return int(match.group()) if match else 32
