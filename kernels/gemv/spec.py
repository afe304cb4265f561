"""Linear layer for one token: ``y[n] = W[n, k] x[k]`` (GEMV), bound by reading W."""

from __future__ import annotations

from collections.abc import Mapping

from ..linear import LinearSpec
from ..types import Argument, Config, DeviceLimits, Geometry, Value, Variant, Workload


class GemvSpec(LinearSpec):
    """Workload ``gemv bias fuse k n w``; see :class:`~clkiln.kernels.linear.LinearSpec`.

    Parameters beside those of the layout: ``LX`` row tiles to a work-group, ``KS`` ways to split k
    within it, ``G`` row groups to a work-item, ``U`` unrolling within a block of columns.
    """

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
        return None

    def _tiles(self, workload: Workload, config: Config) -> int:
        return -(-workload.size("n") // (config["R"] * config["G"]))

    def local_memory(self, workload: Workload, config: Config) -> int:
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
        own = {name: config[name] for name in ("LX", "KS", "G", "U")}
        return self.weight_defines(workload, config) | self.epilogue_defines(workload) | own

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        local = (config["LX"], config["KS"])
        return Geometry.cover((self._tiles(workload, config), config["KS"]), local)

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        return *self.weight_arguments(workload, config), *self.tensor_arguments(workload)
