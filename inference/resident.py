"""Weights on the device: packed for the layouts that the plan chose, each once."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from ..kernels.layout import Layout, pack
from ..kernels.types import Array
from ..runtime.context import Context
from ..runtime.memory import Tensor
from .weights import Weights

#: NumPy copies outside the interpreter's lock, so threads help up to the memory's bandwidth.
PACK_THREADS = 4


class ResidentWeights:
    """Packed matrices by name. ``layouts`` says how each is to lie; the plan fills it in."""

    def __init__(self, context: Context, weights: Weights) -> None:
        self.context, self.weights = context, weights
        self.layouts: dict[str, str] = {}
        self._parts: dict[tuple[str, str], Tensor] = {}

    def part(self, name: str, part: str) -> Tensor:
        """One physical array of a weight: ``q`` (numbers or codes), ``s`` (scales) and so on."""
        return self._parts[name, part]

    def upload(self, names: Iterable[str]) -> None:
        """Pack and upload what is not there yet, a few weights at a time.

        Raises :class:`~clkiln.errors.OutOfDeviceMemory`, naming the weight that did not fit.
        """
        present = {name for name, _ in self._parts}
        wanted = [name for name in dict.fromkeys(names) if name not in present]
        with ThreadPoolExecutor(PACK_THREADS) as pool:
            # The queue of results is short, so that the host never holds the whole model packed.
            for start in range(0, len(wanted), 2 * PACK_THREADS):
                batch = wanted[start : start + 2 * PACK_THREADS]
                for name, parts in zip(batch, pool.map(self._pack, batch), strict=True):
                    self._keep(name, parts)

    def _pack(self, name: str) -> dict[str, Array]:
        return pack(self.weights.matrix(name), Layout.parse(self.layouts[name]))

    def _keep(self, name: str, parts: dict[str, Array]) -> None:
        layout = Layout.parse(self.layouts[name])
        for part, array in parts.items():
            place = layout.memory_of(part)
            tensor = self.context.upload(array, place, what=f"weight {name}.{part}")
            self._parts[name, part] = tensor
