"""2-d convolution of images with channels last, with a bias and an activation if there are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ..activation import ACTIVATIONS, activate
from ..sizes import dividing, safe_items, safe_width, too_many_items
from ..spec import KernelSpec
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
from .shape import Conv, conv_of

_IMAGES = frozenset({"images"})
_WEIGHTS = MappingProxyType({"f32": "float32", "f16": "float16"})
#: A row of the packed weights is filled up to vectors of any width.
_ROW = 16
#: Elements of a window that a tile holds at a time.
_TILE_DEPTH = 16


class Conv2dSpec(KernelSpec):
    """Workload: sizes ``n ih iw`` (images, their rows and columns), ``ci co`` (channels in and
    out) and ``groups``; tags ``kernel stride pad dilation`` as rows and columns (``3x3``),
    ``bias``, ``act`` (none, relu, silu, gelu, gelu_tanh) and ``w``, the weights' dtype.

    ``x`` is ``[n, ih, iw, ci]`` and ``y`` ``[n, oh, ow, co]``, float32; sums are float32, too. So
    pixels of ``y`` are rows, as linear layers and norms take them, and vectors and texels hold
    channels whatever the width of an image. Weights come as ``[co, ci / groups, rows, columns]``.

    Variant ``buffer``: ``V`` channels of ``TP`` columns to a work-item, ``C`` input channels at a
    time, ``LX`` work-items along the channels and ``LY`` along pixels. ``tiled`` shares windows and
    weights through local memory: ``TM`` pixels and ``TN`` channels to a work-item, ``LM`` and
    ``LN`` work-items along them. ``image`` reads ``x`` from an image of RGBA texels, ``image_out``
    writes ``y`` to one, too: ``B`` blocks of four channels to a work-item, and ``WI`` 1 has the
    weights in an image.
    """

    variants = (
        Variant("buffer", "buffer"),
        Variant("tiled", "buffer"),
        Variant("image", "image", _IMAGES),
        Variant("image_out", "image", _IMAGES),
    )
    dtypes = MappingProxyType({"w": tuple(_WEIGHTS)})

    op = "conv2d"
    file = "conv2d/conv2d.cl"
    example = (
        "conv2d act=none bias=no ci=3 co=1024 dilation=1x1 groups=1 ih=224 iw=224 kernel=14x14"
        " n=1 pad=0x0 stride=14x14 w=f32"
    )
    example_model = "ViT-L/14"

    # -- the space -------------------------------------------------------------------------------

    def parameters(self, workload: Workload, variant: Variant) -> Mapping[str, tuple[Value, ...]]:
        conv = conv_of(workload)
        if variant.name == "tiled":
            return {"TM": (4, 8), "TN": (4, 8), "LN": (4, 8, 16), "LM": (4, 8, 16)}
        tile: dict[str, tuple[Value, ...]] = {"TP": (1, 2, 4, 8)}
        tile |= {"LX": (1, 4, 16), "LY": (1, 4, 16)}
        if variant.kind == "image":
            return {"B": (1, 2, 4), "WI": (0, 1), **tile}
        tile["LX"] = (1, 4, 16, 64)
        return {"V": _widths(conv), "C": _steps(conv.in_one_row()), **tile}

    def constraint(self, workload: Workload, config: Config, limits: DeviceLimits) -> str | None:
        conv = conv_of(workload)
        if config.variant == "tiled":
            return _tile_constraint(conv, config, limits)
        if _image(config):
            misfit = _blocks_misfit(conv, config["B"])
            if misfit:
                return misfit
        else:
            conv = conv.in_one_row()
        width, tile = _width(config), config["TP"]
        if config["LX"] * config["LY"] > 256:
            return f"work-group {config['LX'] * config['LY']} > 256 work-items"
        if width > _least_width(conv, config) and width >= 2 * conv.co:
            return f"{width} channels to a work-item of {conv.co}"
        if tile > 1 and tile >= 2 * conv.ow:
            return f"TP {tile} for {conv.ow} columns"
        return too_many_items(config["LX"], -(-conv.co // width)) or too_many_items(
            config["LY"], _tiles(conv, tile)
        )

    def local_memory(self, workload: Workload, config: Config) -> int:
        if config.variant != "tiled":
            return 0
        pixels, channels = _tile(config)
        return 4 * _TILE_DEPTH * (pixels + 4 + channels + 4)

    def layout(self, workload: Workload, config: Config) -> str | None:
        """How inputs are packed: for images, with or without the weights."""
        if not _image(config):
            return "buffer"
        return "images" if config["WI"] else "image"

    def safe(self, workload: Workload, limits: DeviceLimits, layout: str | None = None) -> Config:
        conv = conv_of(workload)
        if layout in ("image", "images"):
            weights = int(layout == "images")
            return Config.of("image", B=1, WI=weights, TP=_columns(conv), LX=1, LY=1)
        flat = conv.in_one_row()
        width = safe_width(limits, _widths(conv))
        items = safe_items(limits, min(16, -(-conv.co // width)))
        plain = Config.of(
            "buffer",
            V=width,
            C=_steps(flat)[-1],
            TP=_columns(flat),
            LX=max(n for n in (1, 4, 16) if n <= items),
            LY=1,
        )
        tiled = Config.of("tiled", TM=4, TN=4, LN=8, LM=8)
        fits = limits.type != "cpu" and self.check(workload, tiled, limits) is None
        return tiled if fits and layout in (None, "buffer") else plain

    def starts(self, workload: Workload, limits: DeviceLimits) -> tuple[Config, ...]:
        """On a CPU as many sums as registers may hold, on a GPU many work-items with few sums each,
        that meet in its caches, and tiles that share more."""
        safe = self.safe(workload, limits)
        few: dict[str, Value] = {"TP": 1, "LX": 4, "LY": 16}
        ideas: tuple[dict[str, Value], ...]
        if safe.variant == "tiled":
            ideas = ({"TM": 8}, {"TM": 8, "TN": 8}, {"LM": 16}, {"LN": 16, "LM": 16})
        else:
            ideas = ({"TP": 8}, {"V": 16, "TP": 4}, {"V": 8, "TP": 8}, {"V": 4, "TP": 8})
        found = [safe.replace(**idea) for idea in ideas]
        if limits.type != "cpu":
            at_a_time = _steps(conv_of(workload).in_one_row())[-1]
            found.insert(0, Config.of("image", B=1, WI=0, **few))
            found.insert(1, Config.of("buffer", V=4, C=at_a_time, **few))
        return safe, *(each for each in found if self.contains(workload, each))

    # -- the kernel ------------------------------------------------------------------------------

    def kernel(self, workload: Workload, config: Config) -> str:
        return "conv2d"

    def defines(self, workload: Workload, config: Config) -> Mapping[str, Value]:
        conv = conv_of(workload)
        own: dict[str, Value] = {name: v for name, v in config.params if name != "WI"}
        own |= {"ACT": ACTIVATIONS[workload.tag("act")], "COP": _padded(conv.co)}
        if workload.tag("bias") == "yes":
            own["BIAS"] = 1
        if workload.tag("w") == "f16":
            own["W_F16"] = 1
        if config.variant == "tiled":
            own["TILED"] = 1
        if not _image(config):
            return own | _sizes(conv.in_one_row(), conv.ci, *conv.in_one_row().runs)
        own["IMAGE"] = 1
        if config["WI"]:
            own["W_IMAGE"] = 1
        if config.variant == "image_out":
            own["Y_IMAGE"] = 1
        return own | _sizes(conv, 1, conv.kernel[1], conv.cig)

    def geometry(self, workload: Workload, config: Config) -> Geometry:
        conv = conv_of(workload)
        if config.variant == "tiled":
            pixels, channels = _tile(config)
            local = (config["LN"], config["LM"], 1)
            groups = -(-conv.cog // channels), -(-conv.pixels // pixels)
            return Geometry((groups[0] * local[0], groups[1] * local[1], conv.groups), local)
        if not _image(config):
            conv = conv.in_one_row()
        items = -(-conv.co // _width(config)), _tiles(conv, config["TP"])
        return Geometry.cover(items, (config["LX"], config["LY"]))

    def arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        conv, dtype = conv_of(workload), _WEIGHTS[workload.tag("w")]
        x: tuple[int, ...] = (conv.n, conv.ih, conv.iw, conv.ci)
        y: tuple[int, ...] = (conv.n, conv.oh, conv.ow, conv.co)
        w: tuple[int, ...] = (conv.window, _padded(conv.co))
        memory: dict[str, Memory] = {}
        if _image(config):
            x, memory["x"] = _texels(x), "image2d"
            if config["WI"]:
                w, memory["w"] = (*w[:1], w[1] // 4, 4), "image2d"
        if config.variant == "image_out":
            y, memory["y"] = _texels(y), "image2d"
        bias = Argument("b", "weight", "float32", (_padded(conv.co),), streams=True)
        return (
            Argument("x", "input", "float32", x, memory.get("x", "buffer")),
            Argument("w", "weight", dtype, w, memory.get("w", "buffer"), streams=True),
            *((bias,) if workload.tag("bias") == "yes" else ()),
            Argument("y", "output", "float32", y, memory.get("y", "buffer")),
        )

    # -- verification and cost -------------------------------------------------------------------

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        conv = conv_of(workload)
        w = rng.standard_normal((conv.co, conv.cig, *conv.kernel)) / np.sqrt(conv.window)
        inputs = {
            "x": rng.standard_normal((conv.n, conv.ih, conv.iw, conv.ci), dtype=np.float32),
            "w": w.astype(_WEIGHTS[workload.tag("w")]),
        }
        if workload.tag("bias") == "yes":
            inputs["b"] = rng.standard_normal(conv.co, dtype=np.float32)
        return inputs

    def pack(
        self, workload: Workload, config: Config, inputs: Mapping[str, Any]
    ) -> dict[str, Array]:
        """Weights as ``[rows, columns, ci / groups, co]``, ``co`` filled up; ``x`` as texels."""
        packed: dict[str, Array] = {}
        for argument in self.arguments(workload, config):
            if argument.role == "output":
                continue
            array = inputs[argument.name]
            if argument.name == "w":
                array = array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
            step = 4 if argument.name == "x" and argument.memory == "image2d" else _ROW
            if argument.name != "x" or argument.memory == "image2d":
                array = _filled(array, step)
            packed[argument.name] = array.reshape(argument.shape)
        return packed

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Tap by tap: a product of matrices for each element of the window and group."""
        conv = conv_of(workload)
        (ph, pw), (sh, sw), (dh, dw) = conv.pad, conv.stride, conv.dilation
        x = np.pad(inputs["x"].astype(np.float64), ((0, 0), (ph, ph), (pw, pw), (0, 0)))
        w = inputs["w"].astype(np.float64).reshape(conv.groups, conv.cog, conv.cig, *conv.kernel)
        y = np.zeros((conv.groups, conv.pixels, conv.cog))
        for ky, kx in np.ndindex(*conv.kernel):
            rows = slice(ky * dh, ky * dh + (conv.oh - 1) * sh + 1, sh)
            columns = slice(kx * dw, kx * dw + (conv.ow - 1) * sw + 1, sw)
            taps = x[:, rows, columns].reshape(conv.pixels, conv.groups, conv.cig)
            y += taps.transpose(1, 0, 2) @ w[..., ky, kx].transpose(0, 2, 1)
        out = y.transpose(1, 0, 2).reshape(conv.n, conv.oh, conv.ow, conv.co)
        return {"y": activate(out + inputs.get("b", 0.0), workload.tag("act"))}

    def outputs(self, workload: Workload, raw: Mapping[str, Array]) -> dict[str, Array]:
        conv, y = conv_of(workload), raw["y"]
        if y.ndim == 3:  # an image of texels
            y = y.reshape(conv.n, conv.oh, conv.ow, -1)[..., : conv.co]
        return {"y": y}

    def tolerance(self, workload: Workload) -> float:
        return 1e-5

    def flops(self, workload: Workload) -> int:
        conv = conv_of(workload)
        return 2 * conv.pixels * conv.co * conv.window

    def bytes(self, workload: Workload) -> int:
        conv = conv_of(workload)
        weight = np.dtype(_WEIGHTS[workload.tag("w")]).itemsize
        x, y = conv.n * conv.ih * conv.iw * conv.ci, conv.pixels * conv.co
        bias = conv.co if workload.tag("bias") == "yes" else 0
        return 4 * (x + y + bias) + weight * conv.co * conv.window


def _image(config: Config) -> bool:
    return config.variant.startswith("image")


def _padded(channels: int) -> int:
    return -(-channels // _ROW) * _ROW


def _filled(array: Array, step: int) -> Array:
    """The last axis filled up with zeros to a multiple of ``step``."""
    short = -array.shape[-1] % step
    return np.ascontiguousarray(np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, short)]))


def _texels(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of an image of ``[n, h, w, c]``."""
    n, h, w, c = shape
    return n * h, w * -(-c // 4), 4


def _widths(conv: Conv) -> tuple[int, ...]:
    """Vectors of output channels: of one group, or, one channel to a group, of neighbours."""
    if conv.groups == 1:
        return (4, 8, 16)
    return dividing((1, 2, 4, 8, 16), conv.co if conv.depthwise else conv.cog)[-3:]


def _steps(conv: Conv) -> tuple[int, ...]:
    """How much of a run is taken at a time."""
    return dividing((1, 2, 4), conv.runs[1])[-2:]


def _columns(conv: Conv) -> int:
    """Columns of a work-item that work for any."""
    return max(n for n in (1, 2, 4) if n == 1 or n < 2 * conv.ow)


def _width(config: Config) -> int:
    """Output channels of a work-item."""
    return 4 * config["B"] if _image(config) else config["V"]


def _least_width(conv: Conv, config: Config) -> int:
    return 4 if _image(config) else _widths(conv)[0]


def _tiles(conv: Conv, columns: int) -> int:
    return conv.n * conv.oh * -(-conv.ow // columns)


def _tile(config: Config) -> tuple[int, int]:
    """Pixels and channels of a work-group of the tiled variant."""
    return config["LM"] * config["TM"], config["LN"] * config["TN"]


def _tile_constraint(conv: Conv, config: Config, limits: DeviceLimits) -> str | None:
    if limits.type == "cpu":
        return "local memory of a CPU is a detour: it is memory like any other"
    pixels, channels = _tile(config)
    if channels >= 2 * conv.cog and (config["LN"] * config["TN"] > 16 or conv.cog < 8):
        return f"a tile of {channels} channels for groups of {conv.cog}"
    if pixels > 16 and pixels >= 2 * conv.pixels:
        return f"a tile of {pixels} pixels for {conv.pixels}"
    return None


def _blocks_misfit(conv: Conv, blocks: int) -> str | None:
    """A reason if a work-item's blocks of four channels are not of one group."""
    if conv.groups == 1 or conv.depthwise:
        return None
    if conv.cig % 4 or conv.cog % (4 * blocks):
        return f"groups of {conv.cig} and {conv.cog} channels in blocks of 4 and {4 * blocks}"
    return None


def _sizes(conv: Conv, column: int, taps: int, run: int) -> dict[str, Value]:
    """Sizes as macros; ``column`` is what the kernel counts one column of the input as."""
    along_rows = {"SY": conv.stride[0], "PY": conv.pad[0], "DY": conv.dilation[0]}
    along_columns = {
        "STEP": conv.stride[1] * column,
        "PAD": conv.pad[1] * column,
        "TAP": conv.dilation[1] * column,
    }
    return {
        "N": conv.n,
        "IH": conv.ih,
        "IW": conv.iw,
        "CI": conv.ci,
        "OH": conv.oh,
        "OW": conv.ow,
        "CO": conv.co,
        "KH": conv.kernel[0],
        "CIG": conv.cig,
        "COG": conv.cog,
        "DEPTHWISE": int(conv.depthwise),
        "TAPS": taps,
        "RUN": run,
        **along_rows,
        **along_columns,
    }
