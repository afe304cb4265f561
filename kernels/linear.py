"""What the operations that read a weight matrix have in common: layouts, packing, variants."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from .coding import DTYPES, STORED_BITS, coding_of
from .images import CONVERTED, FORMS, as_image, conversion, matrix_argument
from .layout import Layout, layout_space, pack
from .spec import KernelSpec
from .split import pieces
from .texels import IMAGE_BUFFERS
from .types import Argument, Array, Config, DeviceLimits, Memory, Role, Value, Variant, Workload
from .weights import Matrix, row_bytes


class WeightSpec(KernelSpec):
    """An operation on a weight ``w`` of the workload's dtype, in any :class:`~.layout.Layout`.

    With a size ``of`` the weight is a piece of a matrix that is too large for the device
    (:mod:`~.split`): the operation does the ``n`` of ``of`` rows from ``piece[0]`` on, and leaves
    alone what belongs to the others.

    Parameters of the layout, the same in every such operation: ``R`` rows interleaved, ``S`` bits
    of a scale (quantised only; 8: bytes times super-scales), ``IW`` width of the image (image
    variant only).
    """

    variants: ClassVar[tuple[Variant, ...]] = (
        Variant("buffer", "buffer"),
        Variant("image", "image", frozenset({"images"})),
    )
    dtypes = MappingProxyType({"w": DTYPES})

    def in_dtype(self, workload: Workload, tag: str, dtype: str) -> Workload:
        """Columns come in whole blocks of the coding."""
        changed = super().in_dtype(workload, tag, dtype)
        coding = coding_of(changed.tag("w"))
        step = coding.columns if coding else 1
        return changed.replace(k=-(-changed.size("k") // step) * step)

    def piece(self, workload: Workload, limits: DeviceLimits) -> Workload | None:
        """Rows of the weight: see :mod:`.split`."""
        n, k, dtype = workload.size("n"), workload.size("k"), workload.tag("w")
        rows = pieces(n, k, dtype, limits, paired=self.paired(workload))
        uncut = len(rows) == 1 or self.is_piece(workload)
        return None if uncut else workload.replace(n=rows[0][1], of=n)

    def weight_shape(self, workload: Workload) -> tuple[int, int]:
        """Rows and columns of the weight."""
        return workload.size("n"), workload.size("k")

    def paired(self, workload: Workload) -> bool:
        return workload.tag("fuse", "none") == "swiglu"

    def layout_parameters(
        self, workload: Workload, variant: Variant
    ) -> dict[str, tuple[Value, ...]]:
        memory: Memory = "image2d" if variant.kind == "image" else "buffer"
        return {**layout_space(workload.tag("w"), memory)}

    def layout_of(self, workload: Workload, config: Config) -> Layout:
        image = self.variant(config.variant).kind == "image"
        return Layout(
            workload.tag("w"),
            "image2d" if image else "buffer",
            config["R"],
            config.get("S", 0),
            self.paired(workload),
            config["IW"] if image else 0,
        )

    def layout(self, workload: Workload, config: Config) -> str:
        return str(self.layout_of(workload, config))

    def layout_values(
        self, workload: Workload, limits: DeviceLimits, layout: str | None
    ) -> tuple[str, dict[str, Value]]:
        """Variant and layout parameters of the safe configuration, or of a given layout."""
        coding = coding_of(workload.tag("w"))
        if layout is None:
            rows = 16 if limits.type == "cpu" else 4
            return "buffer", {"R": rows, **({"S": STORED_BITS[coding.scales][0]} if coding else {})}
        parsed = Layout.parse(layout)
        if parsed.dtype != workload.tag("w"):
            raise ValueError(f"{workload} can't read layout {layout!r}")
        values: dict[str, Value] = {"R": parsed.rows}
        if coding:
            values["S"] = parsed.scale_bits
        if parsed.memory == "image2d":
            values["IW"] = parsed.width
        return ("image" if parsed.memory == "image2d" else "buffer"), values

    def whole(self, workload: Workload) -> int:
        """Rows of the whole matrix, which are more than ``n`` where the weight is a piece of it."""
        return workload.size("of") if self.is_piece(workload) else workload.size("n")

    def is_piece(self, workload: Workload) -> bool:
        return "of" in dict(workload.items)

    def piece_argument(self, workload: Workload) -> tuple[Argument, ...]:
        """``piece``: the first row of the piece; nothing where the weight is whole."""
        argument = Argument("piece", "input", "int32", (1,))
        return (argument,) if self.is_piece(workload) else ()

    def piece_input(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        if not self.is_piece(workload):
            return {}
        most = self.whole(workload) - workload.size("n")
        return {"piece": rng.integers(0, most, 1, np.int32, endpoint=True)}

    def weight_defines(self, workload: Workload, config: Config) -> dict[str, Value]:
        layout = self.layout_of(workload, config)
        coding = layout.coding
        sizes = {"K": workload.size("k"), "N": workload.size("n")}
        defines: dict[str, Value] = {"R": layout.rows, **sizes}
        if self.is_piece(workload):
            defines["OF"] = self.whole(workload)
        if layout.memory == "image2d":
            defines |= {"IMAGE": 1, "IW": layout.width}
        if coding is None:
            defines["FLOATS"] = 32 if layout.dtype == "f32" else 16
            return defines | ({"BFLOAT": 1} if layout.dtype == "bf16" else {})
        defines |= {"BITS": coding.stored, "HALVES": coding.halves, "SCALE": layout.scale_bits}
        if coding.zero:
            defines["ZERO"] = coding.zero
        return defines | ({"MINIMA": 1} if coding.minima else {})

    def weight_arguments(self, workload: Workload, config: Config) -> tuple[Argument, ...]:
        return self.layout_of(workload, config).arguments("w", *self.weight_shape(workload))

    def pack(
        self, workload: Workload, config: Config, inputs: Mapping[str, Any]
    ) -> dict[str, Array]:
        arrays = {
            a.name: as_image(inputs[a.name]) if a.memory == "image2d" else inputs[a.name]
            for a in self.arguments(workload, config)
            if a.role not in ("output", "weight")
        }
        parts = pack(inputs["w"], self.layout_of(workload, config))
        return arrays | {f"w.{part}": array for part, array in parts.items()}

    def weight_bytes(self, workload: Workload) -> int:
        """Bytes of the weight as the file codes it: the least that can be read."""
        rows, cols = self.weight_shape(workload)
        return rows * row_bytes(workload.tag("w"), cols)


class LinearSpec(WeightSpec):
    """``y = x W^T``, with what is fused into it.

    Workload: sizes ``n`` (columns of ``y``) and ``k``; tags ``w`` (dtype), ``bias`` (yes: one is
    added to ``x W^T``, before anything else) and ``fuse``: ``none``; ``add``, which adds to what
    ``y`` holds (the residual stream); ``swiglu``, where ``W`` is gate rows over up rows, ``2n`` in
    all, and ``y = silu(gate) * up``. Of a piece (``of``) ``y`` and the bias are those of the whole.

    The image variant has a parameter ``XM``, as what ``x`` is read: 0 the buffer in which it lies,
    1 that buffer as texels, 2 an image of its own, which a conversion has to make first.
    """

    def layout_parameters(
        self, workload: Workload, variant: Variant
    ) -> dict[str, tuple[Value, ...]]:
        space = super().layout_parameters(workload, variant)
        forms: tuple[Value, ...] = tuple(range(len(FORMS)))
        return space | {"XM": forms} if variant.kind == "image" else space

    def layout_values(
        self, workload: Workload, limits: DeviceLimits, layout: str | None
    ) -> tuple[str, dict[str, Value]]:
        variant, values = super().layout_values(workload, limits, layout)
        return variant, values | {"XM": 0} if self.variant(variant).kind == "image" else values

    def form_misfit(self, config: Config, limits: DeviceLimits) -> str | None:
        """A reason if the device can't show a kernel what ``XM`` says."""
        texels = FORMS[self.form(config)] == "image1d"
        return f"needs {IMAGE_BUFFERS}" if texels and IMAGE_BUFFERS not in limits.features else None

    def form(self, config: Config) -> int:
        """As what ``x`` is read, a place in :data:`~.images.FORMS`."""
        return config.get("XM", 0)

    def way(self, config: Config) -> str:
        return f"{config.variant} {FORMS[self.form(config)]}"

    def conversions(self, workload: Workload, config: Config) -> Mapping[str, Workload]:
        if self.form(config) != CONVERTED:
            return {}
        return {"x": conversion(self.tokens(workload), workload.size("k"))}

    def weight_shape(self, workload: Workload) -> tuple[int, int]:
        return self._halves(workload) * workload.size("n"), workload.size("k")

    def tokens(self, workload: Workload) -> int:
        return 1

    def linear_defines(self, workload: Workload, config: Config) -> dict[str, Value]:
        """Where weight and activations lie, and what follows the product."""
        defines = self.weight_defines(workload, config)
        if self.form(config):
            defines["XM"] = self.form(config)
        if workload.tag("bias") == "yes":
            defines["BIAS"] = 1
        fuse = workload.tag("fuse")
        if fuse != "none":
            defines[fuse.upper()] = 1
        return defines

    def tensor_arguments(self, workload: Workload, form: int = 0) -> tuple[Argument, ...]:
        """Arguments behind the weight: x, the bias if there is one, the piece if it is one, y."""
        n, k, m = self.whole(workload), workload.size("k"), self.tokens(workload)
        arguments = [matrix_argument("x", m, k, form)]
        if workload.tag("bias") == "yes":
            arguments.append(Argument("bias", "input", "float32", (self._halves(workload) * n,)))
        arguments += self.piece_argument(workload)
        return *arguments, Argument("y", self._y_role(workload), "float32", (m, n))

    def _y_role(self, workload: Workload) -> Role:
        added = workload.tag("fuse") == "add"
        return "inout" if added or self.is_piece(workload) else "output"

    def _halves(self, workload: Workload) -> int:
        return 2 if self.paired(workload) else 1

    def inputs(self, workload: Workload, rng: np.random.Generator) -> dict[str, Any]:
        rows, cols = self.weight_shape(workload)
        x, *others = self.tensor_arguments(workload)
        inputs: dict[str, Any] = {
            "w": Matrix.random(workload.tag("w"), rows, cols, rng),
            "x": rng.standard_normal(x.shape, dtype=np.float32),
        }
        for argument in others:
            if argument.name == "bias" or argument.role == "inout":
                inputs[argument.name] = rng.standard_normal(argument.shape, dtype=np.float32)
        return inputs | self.piece_input(workload, rng)

    def reference(self, workload: Workload, inputs: Mapping[str, Any]) -> dict[str, Array]:
        n, y = workload.size("n"), inputs["w"].times(inputs["x"])
        start = int(inputs["piece"][0]) if self.is_piece(workload) else 0
        own = slice(start, start + n)
        if workload.tag("bias") == "yes":
            halves = inputs["bias"].reshape(self._halves(workload), -1)
            y = y + halves[:, own].reshape(-1)
        fuse = workload.tag("fuse")
        if fuse == "swiglu":
            gate, up = np.split(y, 2, axis=-1)
            y = gate / (1 + np.exp(-gate)) * up
        if fuse == "add":
            y = y + inputs["y"][:, own]
        if self.is_piece(workload):
            y, part = inputs["y"].astype(np.float64), y
            y[:, own] = part
        return {"y": y}

    def tolerance(self, workload: Workload) -> float:
        """The columns of others, which have no error, don't dilute that of a piece."""
        return super().tolerance(workload) * sqrt(workload.size("n") / self.whole(workload))

    def flops(self, workload: Workload) -> int:
        rows, cols = self.weight_shape(workload)
        return 2 * rows * cols * self.tokens(workload)

    def bytes(self, workload: Workload) -> int:
        n, k, m = workload.size("n"), workload.size("k"), self.tokens(workload)
        writes = n * m * (2 if workload.tag("fuse") == "add" else 1)
        return self.weight_bytes(workload) + 4 * (k * m + writes)
