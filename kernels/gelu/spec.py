"""Gaussian error linear unit: y = x * Phi(x), exact or by tanh, with a bias if there is one.

Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)" (2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..activation import ACTIVATIONS, activate
from ..elementwise import ElementwiseSpec
from ..texels import input_memory
from ..types import Argument, Array, Config, Value, Workload

#: Activations by the tag ``form``.
_FORMS = {"erf": "gelu", "tanh": "gelu_tanh"}


class GeluSpec(ElementwiseSpec):
    """Tags of the workload: ``form`` and ``bias``.

    ``form`` is ``erf`` for ``x/2 (1 + erf(x / sqrt 2))`` or ``tanh`` for its approximation
    ``x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``: a model means one of them. With ``bias`` a
    row of ``d`` is added to ``x`` first.
    """

    op = "gelu"
    file = "gelu/gelu.cl"
    example = "gelu bias=yes d=3072 form=erf m=197"
    example_model = "ViT-B/16"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        own: dict[str, Value] = {"GELU": ACTIVATIONS[_FORMS[workload.tag("form")]]}
        if workload.tag("bias") == "yes":
            own["BIAS"] = 1
        return {**super().defines(workload, config), **own}

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        d, m = workload.size("d"), workload.size("m")
        seen = input_memory(config)
        x = Argument("x", "input", "float32", (m, d), seen)
        y = Argument("y", "output", "float32", (m, d))
        if workload.tag("bias") != "yes":
            return x, y
        return x, Argument("bias", "input", "float32", (d,), seen), y

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        """Wide enough that both tails, where one form is zero or ``x`` itself, occur."""
        d, m = workload.size("d"), workload.size("m")
        inputs = {"x": rng.normal(0, 3, (m, d)).astype(np.float32)}
        if workload.tag("bias") == "yes":
            inputs["bias"] = rng.standard_normal(d, dtype=np.float32)
        return inputs

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        x = inputs["x"].astype(np.float64) + inputs.get("bias", 0.0)
        return {"y": activate(x, _FORMS[workload.tag("form")])}

    def tolerance(self, workload: Workload) -> float:
        return 2e-6

    def flops(self, workload: Workload) -> int:
        return 8 * workload.size("d") * workload.size("m")

    def bytes(self, workload: Workload) -> int:
        d, m = workload.size("d"), workload.size("m")
        return 4 * d * (2 * m + (workload.tag("bias") == "yes"))
