"""Keys and values of one sequence on a device, and the rotary table: they grow in blocks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from ..errors import OutOfDeviceMemory
from ..runtime.context import Context
from ..runtime.memory import Tensor
from ..units import readable
from .config import ModelConfig
from .plan import Planner
from .weights import Weights

KV_DTYPES = {"f16": np.float16, "f32": np.float32}
#: Half as many bytes cost up to 2e-3 of the logits (relative L2, SmolLM2-135M), so not by default.
DEFAULT_KV = "f32"
#: Positions that are allocated at once; a copy for fewer would not be worth its time.
BLOCK = 256
_TABLE = "rope_table"


class KVCache:
    """Room for ``capacity`` positions, up to ``limit``, in the planner's tensors.

    It grows by half, rounded up to whole blocks, so that all copies together cost less than three
    times the last. One tensor grows at a time: the peak is one tensor of one layer above the end.
    """

    def __init__(
        self, context: Context, planner: Planner, weights: Weights, dtype: str, limit: int
    ) -> None:
        self.context, self.planner, self.weights = context, planner, weights
        self.dtype = np.dtype(KV_DTYPES[dtype])
        self.limit, self.capacity = limit, 0

    def grow(self, positions: int, kept: int) -> None:
        """Make room for ``positions`` and keep the first ``kept``; launches on what moved are
        forgotten.

        Raises :class:`~clkiln.errors.OutOfDeviceMemory`, saying how many positions fit; what is
        kept stays as it is.
        """
        if positions <= self.capacity:
            return
        reason: OutOfDeviceMemory | None = None
        wanted = (max(positions, self.capacity * 3 // 2), positions)
        sizes = [min(self.limit, -(-size // BLOCK) * BLOCK) for size in wanted]
        for capacity in dict.fromkeys([*sizes, positions]):
            if self._fits(capacity):
                try:
                    return self._grow_to(capacity, kept)
                except OutOfDeviceMemory as error:
                    reason = error
        raise OutOfDeviceMemory(self._refusal(positions, reason)) from reason

    def _grow_to(self, capacity: int, kept: int) -> None:
        for name, row in self._rows():
            old = self.planner.tensors.get(name)
            if old is not None and old.shape[0] >= capacity:
                continue
            if name == _TABLE:
                new = self.context.upload(self.weights.rope_table(capacity), what="rotary table")
            else:
                c = self.weights.config
                shape = (capacity, c.n_kv_heads, c.head_dim)
                new = self.context.empty(shape, self.dtype, what=f"KV cache {name}")
                if old is not None:
                    self._copy(new, old, kept * row // self.dtype.itemsize)
            self.planner.replace(name, new)
        self.capacity = capacity

    def _copy(self, new: Tensor, old: Tensor, count: int) -> None:
        try:
            if count:
                new.take(old, count)
        except BaseException:
            new.release()
            raise

    # -- what fits -------------------------------------------------------------------------------

    def _rows(self) -> Iterator[tuple[str, int]]:
        """Each tensor, and the bytes of one position in it."""
        c: ModelConfig = self.weights.config
        for layer in range(c.n_layers):
            for kind in ("k", "v"):
                yield f"blk.{layer}.{kind}_cache", c.kv_dim * self.dtype.itemsize
        yield _TABLE, c.rope.dim * 4

    def _fits(self, capacity: int) -> bool:
        return self._lack(capacity) is None

    def _lack(self, capacity: int) -> str | None:
        """What keeps the cache from growing to ``capacity``, one tensor at a time, and what helps;
        None if nothing does."""
        memory = self.context.memory
        half = " or --kv-dtype f16" if self.dtype == np.float32 else ""
        free = memory.limit - memory.used
        for name, row in self._rows():
            old = self.planner.tensors.get(name)
            if old is not None and old.shape[0] >= capacity:
                continue
            size = capacity * row
            if size > memory.largest:
                return (
                    f"its largest allocation is {readable(memory.largest)}, and {name} of "
                    f"{capacity} takes {readable(size)}: a shorter text{half} may fit"
                )
            if size > free:
                return (
                    f"{readable(memory.used)} of {readable(memory.limit)} are in use: a shorter "
                    f"text{half} or a smaller model may fit, or raise CLKILN_MEMORY_BUDGET"
                )
            free += (old.nbytes if old is not None else 0) - size
        return None

    def _refusal(self, positions: int, reason: OutOfDeviceMemory | None) -> str:
        if reason is not None:  # the driver refused what the budget allowed
            fitting, why = self.capacity, str(reason)
        else:
            sizes = range(self.capacity, positions)
            fitting = self.capacity + bisect_left(sizes, 1, key=lambda c: not self._fits(c)) - 1
            fitting = max(fitting, self.capacity)
            why = self._lack(fitting + 1) or ""
        return (
            f"KV cache of {positions} positions does not fit on {self.context.info.name}: "
            f"{fitting} do ({why})"
        )
