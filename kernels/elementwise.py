"""What operations on single elements of rows have in common: space, safe default, geometry."""

from __future__ import annotations

from collections.abc import Mapping

from .sizes import LOCAL_SIZES, WIDTHS, safe_items, safe_width, too_many_items
from .spec import KernelSpec
from .texels import BUFFER_AND_TEXELS, texel_defines, vector_widths
from .types import Config, DeviceLimits, Geometry, Value, Variant, Workload


class ElementwiseSpec(KernelSpec):
    """Workload: sizes ``d`` (row length) and ``m`` (rows).

    Parameters: ``LX`` work-items to a group along the row, ``V`` vector width, ``U`` vectors to a
    work-item. The variant ``image`` reads the inputs as RGBA texels.
    """

    variants = BUFFER_AND_TEXELS

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        widths = vector_widths(variant, workload.size("d"))
        return {"LX": LOCAL_SIZES, "V": widths, "U": (1, 2, 4, 8, 16)}

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        vectors = -(-workload.size("d") // config["V"])
        return too_many_items(config["LX"] * config["U"], vectors)

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        width = safe_width(limits, WIDTHS)
        vectors = -(-workload.size("d") // width)
        items = safe_items(limits, min(64, vectors))
        unroll = 16 if limits.type == "cpu" and vectors > 8 else 1
        return Config.of("buffer", LX=items, V=width, U=unroll)

    def kernel(self, workload: Workload, config: Config) -> str:
        return self.op

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        return {**dict(config.params), **texel_defines(config), "D": workload.size("d")}

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        pieces = -(-workload.size("d") // (config["V"] * config["U"]))
        return Geometry.cover((pieces, workload.size("m")), (config["LX"], 1))
