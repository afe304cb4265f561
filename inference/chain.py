"""A model as a chain of its operations' references: NumPy, float64, no device.

The chain follows the same list of steps as the plan, each on what the one before made. A step's
own check can't see what lies between steps, an order or a tensor that is not what it should be;
here it shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..kernels.types import Array
from .buckets import token_bucket
from .graph import Step
from .launch_view import HostTensor, LaunchView
from .runner import Runner


class Chain:
    """Goes through the steps of ``runner``'s model from the first position on.

    Sizes of tensors and small vectors are the runner's; activations are float64 here, caches are
    kept in their own dtype.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner, self.length = runner, 0
        written = {"x", "h", "qkv", "attention", "ff", "logits"}
        self.tensors: dict[str, HostTensor] = {}
        for name, tensor in runner.planner.tensors.items():
            data = tensor.read()
            if name in written:
                data = np.zeros(data.shape)
            elif name.endswith("_cache"):
                data = np.zeros_like(data)
            self.tensors[name] = HostTensor(data)

    def feed(self, tokens: Sequence[int]) -> Array:
        """Logits ``[vocab]`` behind ``tokens``; they fit into what the runner holds."""
        m, tensors = len(tokens), self.tensors
        tensors["pick" if m == 1 else "tokens"].write(np.array(tokens, np.int32))
        tensors["state"].write(np.array([self.length, m, 0, 0], np.int32))
        graph = self.runner.graph
        self._run(graph.body(token_bucket(m), self.runner.bucket(self.length + m)), m)
        tensors["x"].write(tensors["x"].data[m - 1].copy())
        self._run(graph.head(), 1)
        self.length += m
        return tensors["logits"].read()

    def _run(self, steps: Iterable[Step], m: int) -> None:
        planner = self.runner.planner
        for step in steps:
            config = planner.choices[step.workload].config
            view = LaunchView(
                step.workload, config, step.tensors, self.tensors, planner.resident.weights,
                self.length, m,
            )  # fmt: skip
            view.write(view.reference(view.inputs()))


def logits_error(got: Array, wanted: Array) -> float:
    """Relative L2 error; infinite where logits are not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.linalg.norm(got - wanted) / (np.linalg.norm(wanted) or 1.0))
