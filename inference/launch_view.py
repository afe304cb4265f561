"""The arguments of one launch of a plan as the logical arrays that a spec's reference takes.

What lies in an engine's tensors is more than what a launch means: activations have rows for the
largest step, a cache has room for more positions. Here is what the launch reads and writes of them,
whether they lie on a device or, for the chain of references, in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..kernels import SPECS
from ..kernels.types import Argument, Array, Config, Workload
from ..kernels.weights import Matrix
from .plan import BoundStep
from .weights import Weights

#: Arguments with a row for each position of the sequence, whatever their declared shape says.
POSITIONAL = ("k_cache", "v_cache", "table")
#: Tokens past which a matrix product is compared for some of them.
MANY = 64


class Held(Protocol):
    """A tensor, wherever it lies."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def read(self, count: int | None = None) -> Array: ...
    def write(self, data: Array) -> None: ...


class HostTensor:
    """A tensor in NumPy."""

    def __init__(self, data: Array) -> None:
        self.data = data
        self.shape, self.dtype = data.shape, data.dtype

    def read(self, count: int | None = None) -> Array:
        """A copy of all, or of the first ``count`` elements."""
        return self.data.copy() if count is None else self.data.reshape(-1)[:count].copy()

    def write(self, data: Array) -> None:
        """Replace the first elements."""
        self.data.reshape(-1)[: data.size] = data.reshape(-1)


def real_workload(workload: Workload, m: int) -> Workload:
    """A workload of a bucket at the number of tokens that a step has."""
    return workload.replace(m=m) if "m" in dict(workload.items) else workload


def sampled_tokens(op: str, m: int) -> list[int] | None:
    """Which of ``m`` tokens of a launch are compared; None: all of them.

    In a product of many tokens, the dearest reference of all, each is a row of its own: the first
    and the last will do, those on both sides of each multiple of 32, and every ninth, so that no
    tile of nine is left out.
    """
    if op != "gemm" or m <= MANY:
        return None
    edges = {edge + side for edge in range(32, m, 32) for side in (-1, 0)}
    return sorted({*range(0, m, 9), *edges, m - 1})


class LaunchView:
    """One launch for ``m`` tokens from position ``start`` on.

    ``names`` are the graph's names of the arguments' tensors, which lie in ``tensors``; of matrices
    in ``weights``.
    """

    def __init__(
        self,
        workload: Workload,
        config: Config,
        names: Mapping[str, str],
        tensors: Mapping[str, Held],
        weights: Weights,
        start: int,
        m: int,
    ) -> None:
        self.spec, self.config, self.names = SPECS[workload.op], config, names
        self.workload = real_workload(workload, m)
        self.tensors, self.weights, self.start, self.end = tensors, weights, start, start + m
        arguments = self.spec.arguments(self.workload, config)
        self.arguments = {a.name: a for a in arguments if a.role != "weight"}
        self.outputs = {n: a for n, a in self.arguments.items() if a.role in ("output", "inout")}
        inputs = {names[n] for n, a in self.arguments.items() if a.role != "output"}
        #: Outputs whose content before the launch means nothing.
        self.pure = [
            name
            for name, argument in self.outputs.items()
            if argument.role == "output" and names[name] not in inputs
        ]

    def tensor(self, name: str) -> Held:
        return self.tensors[self.names[name]]

    def count(self, name: str) -> int:
        """Elements from the tensor's beginning that the launch may touch."""
        argument, tensor = self.arguments[name], self.tensor(name)
        if name in POSITIONAL:
            return self.end * int(np.prod(tensor.shape[1:], dtype=np.int64))
        if argument.memory == "image2d":
            # Rows of whole texels; a chain has the matrix itself there.
            return argument.shape[0] * int(np.prod(tensor.shape[1:], dtype=np.int64))
        return int(np.prod(argument.shape, dtype=np.int64))

    def shaped(self, name: str, flat: Array) -> Array:
        """The first elements of a tensor as the argument's logical array."""
        argument: Argument = self.arguments[name]
        if name in POSITIONAL:
            return flat.reshape(self.end, *self.tensor(name).shape[1:])
        if argument.memory == "image2d" and argument.role == "input":
            return flat.reshape(argument.shape[0], -1)[:, : self.workload.size("k")]
        return flat.reshape(argument.shape)

    def content(self, name: str) -> Array:
        """All of an argument's tensor, flat."""
        return self.tensor(name).read().reshape(-1)

    def inputs(self) -> dict[str, Array]:
        """What the launch will read, without matrices."""
        return {
            name: self.shaped(name, self.content(name)[: self.count(name)])
            for name, argument in self.arguments.items()
            if argument.role != "output"
        }

    @property
    def sampled(self) -> list[int] | None:
        """As :func:`sampled_tokens`."""
        return sampled_tokens(self.spec.op, self.end - self.start)

    def reference(
        self, inputs: Mapping[str, Array], tokens: Sequence[int] | None = None
    ) -> dict[str, Array]:
        """What the launch has to write, in float64; for ``tokens`` of a product, their rows."""
        given: dict[str, Array | Matrix] = dict(inputs)
        workload = self.workload
        if tokens is not None:
            workload = real_workload(workload, len(tokens))
            given |= {name: inputs[name][tokens] for name in ("x", "y") if name in inputs}
        if self.spec.layout(self.workload, self.config) is not None:
            given["w"] = self.weights.matrix(self.names["w"])
        with np.errstate(all="ignore"):
            return self.spec.reference(workload, given)

    def write(self, outputs: Mapping[str, Array]) -> None:
        """Put ``outputs``, logical arrays, in the place of what the launch wrote."""
        for name, array in outputs.items():
            tensor = self.tensor(name)
            tensor.write(array.reshape(-1).astype(tensor.dtype))

    @property
    def place(self) -> str:
        """Where in the model: the weight's name, else the layer."""
        names = self.names
        layers = [".".join(n.split(".")[:2]) for n in names.values() if n.startswith("blk.")]
        where = names.get("w") or next(iter(layers), self.spec.op)
        tokens = self.end - self.start
        count = "1 token" if tokens == 1 else f"{tokens} tokens"
        return f"{where}, {count} at position {self.start}"


class Cleared:
    """Fills tensors with zeros before the first plan that writes them runs.

    A launch may write a part of a tensor and leave the rest: a piece of a matrix its columns. What
    lies there at first is whatever the driver left, which may be no number.
    """

    def __init__(self) -> None:
        self._seen: list[Held] = []

    def clear(self, steps: Iterable[BoundStep], tensors: Mapping[str, Held]) -> None:
        for bound in steps:
            for argument in SPECS[bound.workload.op].arguments(bound.workload, bound.config):
                if argument.role not in ("output", "inout") or argument.name in POSITIONAL:
                    continue
                tensor = tensors[bound.names[argument.name]]
                if not any(tensor is seen for seen in self._seen):
                    self._seen.append(tensor)
                    tensor.write(np.zeros(tensor.shape, tensor.dtype))
