"""Sizes that vary at run time, and the sizes that kernels are tuned for. The one such table.

A step of ``m`` tokens runs the kernels of the smallest bucket that holds ``m``; a kernel is right
for every size up to its bucket's.
"""

from __future__ import annotations

#: Tokens in one prefill step; a longer prompt is cut into chunks of the largest.
TOKENS = (32, 256)
CHUNK = TOKENS[-1]
#: Positions in the KV cache. Attention past the tuned ones takes the nearest bucket's parameters.
#: The first is small, because what is quick for a full bucket can be slow for a nearly empty one.
CONTEXTS = (128, 512, 2048, 8192, 32768, 131072)
#: Contexts that ``tune`` spends time on, and how much of a typical request happens in each.
TUNED_CONTEXTS = {128: 1.0, 512: 1.0, 2048: 0.25}


def token_bucket(m: int) -> int:
    """The bucket of a step of 1 to :data:`CHUNK` tokens; one token is a bucket of its own."""
    if m == 1:
        return 1
    return next(size for size in TOKENS if m <= size)


def context_bucket(length: int) -> int:
    """The bucket of ``length`` positions; past the table, the next power of two."""
    for size in CONTEXTS:
        if length <= size:
            return size
    return 1 << (length - 1).bit_length()
