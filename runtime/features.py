"""What a kernel's variant may require of a device beside sizes: the names, in one table.

A name with an underscore belongs to a family (``asm_x86`` to ``asm``): probed features get such
names, and whoever rules out the family rules out all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """``extensions`` are those that bring it, ``needs`` other features without which it is of no
    use, and ``words`` a regular expression of what a source uses it by."""

    meaning: str
    extensions: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    words: str = ""


FEATURES = {
    "images": Feature("2-d images", words="image2d_t"),
    "image_buffers": Feature(
        "buffers seen as texels", needs=("images", "cl12"), words="image1d_buffer_t"
    ),
    "fp16": Feature("arithmetic on halves", ("cl_khr_fp16",)),
    "subgroups": Feature(
        "sub-groups",
        ("cl_khr_subgroups", "cl_intel_subgroups"),
        words=r"(?:intel_)?sub_group_\w+|get_(?:\w+_)?sub_group_\w+",
    ),
    "integer_dot_product": Feature(
        "products of packed bytes", ("cl_khr_integer_dot_product",), words=r"dot_\w*4x8packed_\w+"
    ),
    "cl12": Feature("OpenCL C 1.2"),
    "asm": Feature("inline assembly", words="asm|__asm|__asm__"),
}

#: Extensions and the feature that each brings.
FEATURE_EXTENSIONS = {e: name for name, feature in FEATURES.items() for e in feature.extensions}


def known(feature: str) -> bool:
    """Whether ``feature`` is in the table, or of a family that is."""
    return any(_belongs(feature, name) for name in FEATURES)


def lost(without: Iterable[str]) -> frozenset[str]:
    """Names of the table that are gone without some: those, and what needs them."""
    found = set(without)
    while more := {n for n, f in FEATURES.items() if found.intersection(f.needs)} - found:
        found |= more
    return frozenset(found)


def remaining(features: Iterable[str], without: Iterable[str]) -> frozenset[str]:
    """Those of ``features`` that are left without some."""
    gone = lost(without)
    return frozenset(f for f in features if not any(_belongs(f, name) for name in gone))


def _belongs(feature: str, name: str) -> bool:
    return feature == name or feature.startswith(f"{name}_")
