"""Linear layer for many tokens: ``y[m, n] = x[m, k] W[n, k]^T`` (GEMM), bound by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..linear import LinearSpec
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload

#: The variant that goes through local memory.
TILED = "tiled"


class GemmSpec(LinearSpec):
    """Workload ``gemm bias fuse k m n w``; ``m`` is the largest number of tokens in a step.

    The kernel reads the real number from ``state``; see also
    :class:`~clkiln.kernels.linear.LinearSpec`.

    Parameters beside those of the layout: ``TM`` tokens and ``TN`` row groups to a work-item,
    ``LX`` token tiles and ``LY`` row tiles to a work-group. The variant ``tiled`` shares tokens and
    decoded weights through local memory: ``TM`` tokens and ``TN`` rows to a work-item, ``LN``
    work-items along the rows and ``LM`` along the tokens.
    """

    variants = (*LinearSpec.variants, Variant(TILED, "buffer"))

    op = "gemm"
    file = "gemm/gemm.cl"
    example = "gemm bias=no fuse=swiglu k=576 m=256 n=1536 w=q4_1"

    def tokens(self, workload: Workload) -> int:
        return workload.size("m")

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        if variant.name == TILED:
            tile: dict[str, tuple[Value, ...]] = {"TM": (4, 8), "TN": (4, 8)}
            tile |= {"LN": (4, 8, 16, 32), "LM": (2, 4, 8, 16)}
            return self.layout_parameters(workload, variant) | tile
        return {
            **self.layout_parameters(workload, variant),
            "TM": (1, 2, 4, 6, 8, 12),
            "TN": (1, 2),
            "LX": (1, 2, 4, 8, 16),
            "LY": (1, 2, 4, 8, 16, 32),
        }

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        if config.variant == TILED:
            return self._tile_constraint(workload, config, limits)
        pair = 2 if self.paired(workload) else 1
        registers = config["TM"] * config["TN"] * pair * config["R"]
        if registers > 512:
            return f"accumulators {registers} > 512 floats"
        if config["LX"] * config["LY"] > 256:
            return f"work-group {config['LX'] * config['LY']} > 256 work-items"
        if self.form(config) and (config["TN"] > 1 or config["TM"] < min(4, workload.size("m"))):
            # Decoding few tokens' weights costs more than any way to read these tokens.
            return f"texels for a tile of {config['TM']} tokens by {config['TN']} row groups"
        m_tiles, n_tiles = self._tiles(workload, config)
        if config["TM"] > 1 and config["TM"] >= 2 * workload.size("m"):
            return f"TM {config['TM']} for {workload.size('m')} tokens"
        if config["LX"] > 1 and config["LX"] >= 2 * m_tiles:
            return f"LX {config['LX']} for {m_tiles} token tiles"
        if config["LY"] > 1 and config["LY"] >= 2 * n_tiles:
            return f"LY {config['LY']} for {n_tiles} row tiles"
        return self.form_misfit(config, limits)

    def _tile_constraint(
        self, workload: Workload, config: Config, limits: DeviceLimits
    ) -> str | None:
        if limits.type == "cpu":
            return "local memory of a CPU is a detour: it is memory like any other"
        items = config["LN"] * config["LM"]
        if items > 256:
            return f"work-group {items} > 256 work-items"
        if config["LN"] * config["TN"] % config["R"]:
            return f"a tile of {config['LN'] * config['TN']} rows in groups of {config['R']}"
        if config["LM"] > 2 and config["LM"] * config["TM"] >= 2 * workload.size("m"):
            return f"LM {config['LM']} for {workload.size('m')} tokens"
        return None

    def _tile(self, config: Config) -> tuple[int, int]:
        """Rows and tokens of a work-group of the tiled variant."""
        return config["LN"] * config["TN"], config["LM"] * config["TM"]

    def local_memory(self, workload: Workload, config: Config) -> int:
        if config.variant != TILED:
            return 0
        rows, tokens = self._tile(config)
        pair = 2 if self.paired(workload) else 1
        return 4 * 32 * (rows * pair + 4 + tokens + 4)

    def _tiles(self, workload: Workload, config: Config) -> tuple[int, int]:
        rows = config["TN"] * config["R"]
        return -(-workload.size("m") // config["TM"]), -(-workload.size("n") // rows)

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        variant, values = self.layout_values(workload, limits, layout)
        tokens = next(size for size in (8, 4, 1) if size <= workload.size("m"))
        config = Config.of(variant, **values, TM=tokens, TN=1, LX=1, LY=1)
        if limits.type == "cpu":
            return config
        wide = Config.of(variant, **values, TM=tokens, TN=1, LX=1, LY=32)
        ideas = [wide, config]
        if variant == "buffer":
            ideas.insert(0, Config.of(TILED, **values, TM=4, TN=4, LN=8, LM=8))
        return next((c for c in ideas if self.check(workload, c, limits) is None), config)

    def starts(self, workload: Workload, limits: DeviceLimits) -> tuple[Config, ...]:
        """As many tokens to a work-item as registers may hold: each shares a decoded weight."""
        safe = self.safe(workload, limits)
        ideas: tuple[dict[str, Value], ...]
        if limits.type == "cpu":
            ideas = ({"TM": 12}, {"TM": 6, "TN": 2}, {"LX": 8, "LY": 2}, {"TM": 4})
        elif safe.variant == TILED:
            ideas = ({"R": 8, "LM": 16}, {"R": 16, "LM": 4}, {"LN": 16, "LM": 16}, {"LN": 16})
        else:
            ideas = ({"LX": 4, "LY": 16}, {"LX": 8, "LY": 8}, {"R": 8}, {"TM": 4})
        return safe, *(safe.replace(**idea) for idea in ideas)

    def kernel(self, workload: Workload, config: Config) -> str:
        return "gemm"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        own: dict[str, Value] = {name: config[name] for name in ("TM", "TN")}
        if config.variant == TILED:
            own |= {"TILED": 1, "LN": config["LN"], "LM": config["LM"]}
        else:
            own |= {"LX": config["LX"], "LY": config["LY"]}
        return self.linear_defines(workload, config) | own

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        if config.variant == TILED:
            rows, tokens = self._tile(config)
            groups = -(-workload.size("n") // rows), -(-workload.size("m") // tokens)
            local = config["LN"], config["LM"]
            return Geometry((groups[0] * local[0], groups[1] * local[1]), local)
        return Geometry.cover(self._tiles(workload, config), (config["LX"], config["LY"]))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        state = Argument("state", "state", "int32", (4,))
        weight = self.weight_arguments(workload, config)
        return state, *weight, *self.tensor_arguments(workload, self.form(config))

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        """As for GEMV, with a state whose number of tokens is the whole bucket."""
        state = np.array([0, workload.size("m"), 0, 0], np.int32)
        return {"state": state, **super().inputs(workload, rng)}

    def outputs(self, workload: Workload, raw: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": raw["y"]}
