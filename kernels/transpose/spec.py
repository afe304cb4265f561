"""Transposition of four axes into any order: y = x.transpose(perm), moved bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from ..sizes import safe_items, safe_width, too_many_items
from ..spec import KernelSpec
from ..texels import IMAGE_BUFFERS
from ..types import Argument, Array, Config, DeviceLimits, Geometry, Value, Variant, Workload
from .axes import AXES, Moved, moved, order_of

_NUMBERS: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
#: Elements that a work-item may hold at a time.
_MOST_HELD = 64

_moved = lru_cache(maxsize=256)(moved)


class TransposeSpec(KernelSpec):
    """Workload: sizes ``a b c d`` of the input, tags ``perm`` and ``dtype``.

    ``perm`` names the axes in the order of the output: ``acbd`` swaps the middle two. Axes of one
    element and axes that stay neighbours don't count: ``abdc`` is a matrix transposed ``a b``
    times, ``cdab`` a single one of ``a b`` rows.

    Variants ``buffer`` and ``image`` (which reads RGBA texels) move runs of ``V`` elements, ``U``
    to a work-item, ``LX`` work-items side by side; with ``READ`` 1 what lies side by side in the
    input, with 0 what will in the output. Variants ``tiled`` and ``tiled_image`` go through local
    memory, ``TILE`` by ``TILE`` elements with ``PAD`` more behind a row, ``LY`` rows at a time.
    """

    variants = (
        Variant("buffer", "buffer"),
        Variant("tiled", "buffer"),
        Variant("image", "image", frozenset({IMAGE_BUFFERS})),
        Variant("tiled_image", "image", frozenset({IMAGE_BUFFERS})),
    )
    dtypes = MappingProxyType({"dtype": tuple(_NUMBERS)})

    op = "transpose"
    file = "transpose/transpose.cl"
    example = "transpose a=1 b=12 c=197 d=64 dtype=f32 perm=abdc"
    example_model = "ViT-B/16"

    def axes(self, workload: Workload) -> Moved:
        """The axes as the kernel sees them. Raises ``ValueError`` for a ``perm`` that is none."""
        return _moved(_shape(workload), order_of(workload.tag("perm")))

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        if variant.name.startswith("tiled"):
            return {"TILE": (8, 16, 32, 64, 128), "LY": (1, 2, 4, 8, 16), "PAD": (0, 1)}
        return {"LX": (1, 16, 64, 256), "V": (1, 2, 4, 8, 16), "U": (1, 4, 16), "READ": (0, 1)}

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        axes = self.axes(workload)
        if _tiled(config):
            return _tile_constraint(axes, config)
        if axes.rows and not config["READ"]:
            return "rows stay rows: what is read side by side is written so, READ 0 is READ 1"
        run, runs = (axes.x, axes.y) if config["READ"] else (axes.y, axes.x)
        if config["U"] * config["V"] > _MOST_HELD:
            return f"registers {config['U'] * config['V']} > {_MOST_HELD} elements"
        if config["V"] > run.size:
            return f"vectors of {config['V']} in runs of {run.size}"
        per_texel = 16 // _number(workload).itemsize
        whole = config["READ"] and config["V"] % per_texel == 0
        if _image(config) and whole and run.size % config["V"]:
            return f"rows of {run.size} in texel vectors of {config['V']}"
        return too_many_items(config["LX"], -(-run.size // config["V"])) or too_many_items(
            config["U"], runs.size
        )

    def local_memory(self, workload: Workload, config: Config) -> int:
        if not _tiled(config):
            return 0
        return config["TILE"] * (config["TILE"] + config["PAD"]) * _number(workload).itemsize

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        axes = self.axes(workload)
        # Along the longer axis, so that a group has something to do; else along the output.
        along_x = axes.rows or axes.x.size > 4 * axes.y.size
        run = axes.x if along_x else axes.y
        width = safe_width(limits, (n for n in (1, 2, 4, 8) if n <= run.size))
        items = safe_items(limits, min(64, -(-run.size // width)))
        items = max(n for n in (1, 16, 64) if n <= items)
        untiled = Config.of("buffer", LX=items, V=width, U=1, READ=int(along_x))
        tiled = Config.of("tiled", TILE=16, LY=4, PAD=1)
        if limits.type == "cpu" or self.check(workload, tiled, limits) is not None:
            return untiled
        return tiled

    def starts(self, workload: Workload, limits: DeviceLimits) -> tuple[Config, ...]:
        """On a CPU blocks of a cache line's width, on a GPU tiles that fill whole transactions."""
        tiles = (Config.of("tiled", TILE=32, LY=8, PAD=1), Config.of("tiled", TILE=64, LY=4, PAD=1))
        blocks = tuple(Config.of("buffer", LX=1, V=v, U=u, READ=1) for v, u in ((16, 4), (4, 16)))
        return self.safe(workload, limits), *(blocks if limits.type == "cpu" else tiles)

    def kernel(self, workload: Workload, config: Config) -> str:
        return "transpose"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        axes = self.axes(workload)
        own: dict[str, Value] = {**dict(config.params), "BITS": 8 * _number(workload).itemsize}
        if _image(config):
            own["IMAGE"] = 1
        named = zip(("X", "Y", "Z0", "Z1"), (axes.x, axes.y, *axes.others), strict=True)
        for name, axis in named:
            own |= {name: axis.size, f"{name}_IN": axis.step_in, f"{name}_OUT": axis.step_out}
        return own

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        axes = self.axes(workload)
        others = axes.others[0].size * axes.others[1].size
        if _tiled(config):
            tile, local = config["TILE"], (config["TILE"], config["LY"], 1)
            groups = -(-axes.x.size // tile), -(-axes.y.size // tile)
            return Geometry((groups[0] * local[0], groups[1] * local[1], others), local)
        run, runs = (axes.x, axes.y) if config["READ"] else (axes.y, axes.x)
        items = -(-run.size // config["V"]), -(-runs.size // config["U"]), others
        return Geometry.cover(items, (config["LX"], 1, 1))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        """Both as 32-bit words: as floats an image might change what is no number."""
        words = (-(-self.bytes(workload) // 2 // 4),)
        return (
            Argument("x", "input", "uint32", words, "image1d" if _image(config) else "buffer"),
            Argument("y", "output", "uint32", words),
        )

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        """Some of them denormal, in case that a device flushes those."""
        shape, number = _shape(workload), _number(workload)
        tiny = float(np.finfo(number).smallest_normal) / 8
        scale = rng.choice([1.0, tiny], shape, p=[0.9, 0.1])
        return {"x": (rng.standard_normal(shape) * scale).astype(number)}

    def pack(
        self, workload: Workload, config: Config, inputs: Mapping[str, Any]
    ) -> dict[str, Array]:
        x = np.ascontiguousarray(inputs["x"]).reshape(-1)
        odd = x.nbytes % 4 // x.itemsize
        return {"x": np.pad(x, (0, odd)).view(np.uint32)}

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        order = order_of(workload.tag("perm"))
        return {"y": np.ascontiguousarray(inputs["x"].transpose(order))}

    def outputs(self, workload: Workload, raw: Mapping[str, Array]) -> dict[str, Array]:
        shape = _shape(workload)
        numbers = np.ascontiguousarray(raw["y"]).view(_number(workload))[: np.prod(shape)]
        return {"y": numbers.reshape([shape[axis] for axis in order_of(workload.tag("perm"))])}

    def tolerance(self, workload: Workload) -> float:
        return 0.0

    def flops(self, workload: Workload) -> int:
        return 0

    def bytes(self, workload: Workload) -> int:
        return 2 * int(np.prod(_shape(workload))) * _number(workload).itemsize


def _shape(workload: Workload) -> tuple[int, ...]:
    return tuple(workload.size(name) for name in AXES)


def _number(workload: Workload) -> np.dtype[Any]:
    dtype = workload.tag("dtype")
    if dtype not in _NUMBERS:
        raise ValueError(f"dtype={dtype} is none of {', '.join(_NUMBERS)}")
    return _NUMBERS[dtype]


def _tiled(config: Config) -> bool:
    return config.variant.startswith("tiled")


def _image(config: Config) -> bool:
    return config.variant.endswith("image")


def _tile_constraint(axes: Moved, config: Config) -> str | None:
    tile, shorter = config["TILE"], min(axes.x.size, axes.y.size)
    if axes.rows:
        return "rows stay rows: nothing to turn in a tile"
    if tile > 8 and tile >= 2 * shorter:
        return f"a tile of {tile} for an axis of {shorter}"
    if config["LY"] > tile:
        return f"LY {config['LY']} for a tile of {tile} rows"
    return None
