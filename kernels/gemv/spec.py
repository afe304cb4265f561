"""Linear layer for one token: ``y[n] = W[n, k] x[k]`` (GEMV), bound by reading W."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from ..attention import KV_DTYPES
from ..images import FORMS
from ..linear import LinearSpec
from ..types import (
    Argument,
    Array,
    Config,
    DeviceLimits,
    Geometry,
    Memory,
    Value,
    Variant,
    Workload,
)
from . import heads


class GemvSpec(LinearSpec):
    """Workload ``gemv bias fuse k n w``; see :class:`~clkiln.kernels.linear.LinearSpec`.

    With ``norm=yes`` the product is with ``RMSNorm(x)``: the tag ``eps`` and the weights ``norm``
    are as in the operation rmsnorm. With ``fuse=qkv`` the rows are the query, key and value heads
    of one token, neighbouring rows of a head being the pairs that rotate (sizes ``heads``,
    ``kv_heads``, ``head_dim``, ``rope_dim``, tag ``kv``): ``y`` gets the rotated queries, and the
    position's rows of the caches the rotated keys and the values.

    Parameters beside those of the layout: ``LX`` row tiles to a work-group, ``KS`` ways to split k
    within it, ``G`` row groups to a work-item, ``U`` unrolling within a block of columns.
    """

    #: The dtype of the caches where heads are fused, beside the weight's.
    dtypes = MappingProxyType({**LinearSpec.dtypes, "kv": tuple(KV_DTYPES)})

    op = "gemv"
    file = "gemv/gemv.cl"
    example = "gemv bias=no fuse=swiglu k=576 n=1536 w=q4_1"

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        return {
            **self.layout_parameters(workload, variant),
            "LX": (1, 2, 4, 8, 16, 32),
            "KS": (1, 2, 4, 8, 16, 32),
            "G": (1, 2, 4),
            "U": (1, 4, 16),
        }

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        blocks = -(-workload.size("k") // 32)
        if config["KS"] > blocks:
            return f"KS {config['KS']} > {blocks} blocks of columns"
        tiles = self._tiles(workload, config)
        if config["LX"] > 1 and config["LX"] >= 2 * tiles:
            return f"LX {config['LX']} for {tiles} row tiles"
        if config["LX"] * config["KS"] > 256:
            return f"work-group {config['LX'] * config['KS']} > 256 work-items"
        if config["U"] == 1 and self.form(config) and not self.normed(workload):
            return "U 1: columns come in fours, as texels do"
        return self.form_misfit(config, limits)

    def piece(self, workload: Workload, limits: DeviceLimits) -> Workload | None:
        """None of heads: both rows of a pair have to be there."""
        return None if workload.tag("fuse") == "qkv" else super().piece(workload, limits)

    def _tiles(self, workload: Workload, config: Config) -> int:
        return -(-workload.size("n") // (config["R"] * config["G"]))

    def normed(self, workload: Workload) -> bool:
        return workload.tag("norm", "no") == "yes"

    def local_memory(self, workload: Workload, config: Config) -> int:
        staged = 4 * (-(-workload.size("k") // 8) * 8 + config["LX"] * config["KS"])
        return self._sums(workload, config) + (staged if self.normed(workload) else 0)

    def _sums(self, workload: Workload, config: Config) -> int:
        """Bytes of local memory in which the parts of a split meet."""
        if config["KS"] == 1:
            return 0
        pair = 2 if self.paired(workload) else 1
        return 4 * config["KS"] * config["LX"] * config["G"] * pair * config["R"]

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        variant, values = self.layout_values(workload, limits, layout)
        split = 1
        if limits.type == "cpu":
            # Sums of four groups don't wait for each other; too few rows had better spread.
            wide = Config.of(variant, **values, LX=1, KS=1, G=4, U=1)
            if self._tiles(workload, wide) >= 4 * limits.compute_units:
                return wide
        elif layout is None:
            blocks = -(-workload.size("k") // 32)
            split = 1 << min(16, limits.max_work_group_size, blocks).bit_length() - 1
        config = Config.of(variant, **values, LX=1, KS=split, G=1, U=1)
        if self.check(workload, config, limits) is None:
            return config
        return Config.of(variant, **values, LX=1, KS=1, G=1, U=1)

    def starts(self, workload: Workload, limits: DeviceLimits) -> tuple[Config, ...]:
        """Other splits of rows and columns than the safe one, by what kind of device it is."""
        safe = self.safe(workload, limits)
        ideas: tuple[dict[str, Value], ...]
        if limits.type == "cpu":
            ideas = ({"G": 4, "U": 16}, {"G": 2, "U": 16}, {"G": 1}, {"R": 8, "G": 4})
        else:
            ideas = ({"LX": 8, "KS": 16}, {"R": 8, "LX": 4, "KS": 32}, {"R": 16, "KS": 32})
        return safe, *(safe.replace(**idea) for idea in ideas)

    def kernel(self, workload: Workload, config: Config) -> str:
        return "gemv"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        found = self.linear_defines(workload, config)
        if self.normed(workload):
            found |= {"NORM": 1, "EPS": f"{float(workload.tag('eps'))!r}f"}
        if workload.tag("fuse") == "qkv":
            found |= heads.defines(workload)
        return found | {name: config[name] for name in ("LX", "KS", "G", "U")}

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        local = (config["LX"], config["KS"])
        return Geometry.cover((self._tiles(workload, config), config["KS"]), local)

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        x, *bias, y = self.tensor_arguments(workload, self.form(config))
        norm = [self._norm_argument(workload, config)] if self.normed(workload) else []
        middle = (*self.weight_arguments(workload, config), x, *norm, *bias)
        if workload.tag("fuse") != "qkv":
            return *middle, y
        state = Argument("state", "state", "int32", (4,))
        y = replace(y, shape=(1, heads.queries(workload)))
        return state, *middle, y, *heads.arguments(workload)

    def _norm_argument(self, workload: Workload, config: Config) -> Argument:
        """The norm's weights, which are texels where x is seen as texels."""
        memory: Memory = "image1d" if FORMS[self.form(config)] == "image1d" else "buffer"
        return Argument("norm", "input", "float32", (workload.size("k"),), memory)

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        inputs = super().inputs(workload, rng)
        if self.normed(workload):
            # As long as a residual stream may be: the norm has to even it out.
            inputs["x"] *= np.float32(np.exp(rng.normal(0, 1)))
            inputs["norm"] = rng.normal(1, 0.3, workload.size("k")).astype(np.float32)
        if workload.tag("fuse") == "qkv":
            inputs |= heads.inputs(workload, rng)
        return inputs

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        if self.normed(workload):
            x = inputs["x"].astype(np.float64)
            mean = np.mean(x * x, axis=-1, keepdims=True)
            x = x / np.sqrt(mean + float(workload.tag("eps"))) * inputs["norm"]
            inputs = {**inputs, "x": x}
        found = super().reference(workload, inputs)
        if workload.tag("fuse") == "qkv":
            return heads.reference(workload, found["y"], inputs)
        return found

    def tolerance(self, workload: Workload) -> float:
        """float16 rounds each value of a cache by up to 2^-11, over many by 2.1e-4."""
        half = workload.tag("fuse") == "qkv" and workload.tag("kv") == "f16"
        return 5e-4 if half else super().tolerance(workload)

    def bytes(self, workload: Workload) -> int:
        norm = 4 * workload.size("k") if self.normed(workload) else 0
        caches = heads.bytes(workload) if workload.tag("fuse") == "qkv" else 0
        return super().bytes(workload) + norm + caches
