"""Convolution: every variant at random shapes, and the reference against the plainest loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clk_cases import TINY, seeds
from clk_pocl import a_device
from clk_run import Limits, Runner
from clkiln.errors import UsageError
from clkiln.harness.operation import Operation
from clkiln.kernels import SPECS
from clkiln.kernels.conv2d.shape import conv_of
from clkiln.kernels.survey import parse_workload, survey
from clkiln.kernels.types import Workload
from clkiln.runtime.context import Context
from clkiln.runtime.program import ProgramLoader

SPEC = SPECS["conv2d"]
GPU = Limits(
    "gpu", 132, 48 << 10, 1024, (1024, 1024, 64), 8 << 30, 16384, 16384,
    features=frozenset({"images", "image_buffers"}),
)  # fmt: skip
PLAIN = Workload.parse(
    "conv2d act=none bias=no ci=8 co=8 dilation=1x1 groups=1 ih=6 iw=6 kernel=3x3 n=1 pad=1x1"
    " stride=1x1 w=f32"
)


def random_workload(rng: np.random.Generator) -> Workload:
    """Of any kind: dense, in groups, a channel to a group, a pixel to a window; often odd."""
    kind = rng.choice(["dense", "dense", "groups", "depthwise", "pixel"])
    groups, cig, cog = 1, int(rng.integers(1, 14)), int(rng.integers(1, 40))
    if kind == "groups":
        groups, cig, cog = int(rng.integers(2, 4)), 4 * int(rng.integers(1, 3)), 4 * cog
    elif kind == "depthwise":
        groups, cig, cog = int(rng.integers(2, 30)), 1, 1

    def pair(low: int, high: int) -> str:
        return "x".join(str(n) for n in rng.integers(low, high + 1, 2))

    pixel = kind == "pixel"
    return Workload.of(
        "conv2d",
        n=int(rng.integers(1, 3)),
        ih=int(rng.integers(7, 14)),
        iw=int(rng.integers(7, 14)),
        ci=groups * cig,
        co=groups * cog,
        groups=groups,
        kernel="1x1" if pixel else pair(1, 4),
        stride="1x1" if pixel else pair(1, 3),
        pad="0x0" if pixel or rng.random() < 0.3 else pair(0, 2),
        dilation="1x1" if pixel or rng.random() < 0.5 else pair(1, 2),
        bias=str(rng.choice(["yes", "no"])),
        act=str(rng.choice(["none", "relu", "silu", "gelu", "gelu_tanh"])),
        w=str(rng.choice(["f32", "f16"])),
    )


@pytest.mark.parametrize("seed", seeds(4, 60))
def test_random_shapes(any_runner: Runner, seed: int) -> None:
    """One configuration of each variant, those of a GPU with them."""
    rng = np.random.default_rng([seed, 1])
    workload = random_workload(rng)
    inputs = SPEC.inputs(workload, rng)
    feasible = SPEC.feasible(workload, replace(any_runner.limits, type="gpu"))
    for variant in SPEC.variants:
        configs = [config for config in feasible if config.variant == variant.name]
        if configs:
            any_runner.check(SPEC, workload, configs[rng.integers(len(configs))], inputs)


@pytest.mark.parametrize("text", TINY["conv2d"])
def test_the_reference_is_the_sum_over_the_window(text: str) -> None:
    workload = Workload.parse(text).replace(act="none")
    conv = conv_of(workload)
    inputs = SPEC.inputs(workload, np.random.default_rng(0))
    got = SPEC.reference(workload, inputs)["y"]
    x, w = inputs["x"].astype(np.float64), inputs["w"].astype(np.float64)
    for n, oy, ox, co in np.ndindex(*got.shape):
        total = float(inputs["b"][co]) if "b" in inputs else 0.0
        for c, ky, kx in np.ndindex(conv.cig, *conv.kernel):
            iy = oy * conv.stride[0] - conv.pad[0] + ky * conv.dilation[0]
            ix = ox * conv.stride[1] - conv.pad[1] + kx * conv.dilation[1]
            if 0 <= iy < conv.ih and 0 <= ix < conv.iw:
                total += x[n, iy, ix, co // conv.cog * conv.cig + c] * w[co, c, ky, kx]
        assert got[n, oy, ox, co] == pytest.approx(total, rel=1e-12, abs=1e-12)


def test_a_patch_embedding_is_a_linear_layer_over_patches() -> None:
    """Windows that don't overlap: what ``docs/kernels.md`` says of 3-d patches rests on it."""
    workload = PLAIN.replace(kernel="3x3", stride="3x3", pad="0x0", ci=3, co=7)
    inputs = SPEC.inputs(workload, np.random.default_rng(0))
    patches = inputs["x"].reshape(2, 3, 2, 3, 3).transpose(0, 2, 1, 3, 4).reshape(4, 27)
    linear = patches.astype(np.float64) @ inputs["w"].transpose(2, 3, 1, 0).reshape(27, 7)
    assert np.allclose(SPEC.reference(workload, inputs)["y"].reshape(4, 7), linear, atol=1e-12)


def test_what_lies_outside_a_window_does_not_matter(any_runner: Runner) -> None:
    """Padding is no product with zero: infinity times zero is no number."""
    inputs = SPEC.inputs(PLAIN, np.random.default_rng(0))
    want = SPEC.reference(PLAIN, inputs)["y"]
    inputs["x"][0, 0, 0] = np.inf
    feasible = SPEC.feasible(PLAIN, replace(any_runner.limits, type="gpu"))
    for variant in SPEC.variants:
        config = next((c for c in feasible if c.variant == variant.name), None)
        if config is not None:
            got, _ = any_runner.run(SPEC, PLAIN, config, inputs)
            seen = np.zeros((6, 6), bool)
            seen[:2, :2] = True
            assert np.allclose(got["y"][0][~seen], want[0][~seen], atol=1e-4)
            assert not np.isfinite(got["y"][0][seen]).any()


def test_an_image_that_was_written_is_one_to_read() -> None:
    """What fills up the last texel of a pixel is zero, as where an input was packed."""
    workload = Workload.parse(TINY["conv2d"][0])
    config = next(c for c in SPEC.space(workload) if c.variant == "image_out")
    with Context(a_device()) as context:
        operation = Operation(context, workload)
        loader = ProgramLoader(context)
        bound = operation.bind(loader.load(SPEC.source(workload, config), "conv2d"), config)
        bound.launch.enqueue()
        context.finish()
        image = bound.tensors["y"].read()
        bound.release()
    want = operation.reference["y"]
    following = workload.replace(ci=18, ih=want.shape[1], iw=want.shape[2], pad="1x1", bias="no")
    first = SPEC.inputs(following, np.random.default_rng(0)) | {"x": want.astype(np.float32)}
    packed = SPEC.pack(following, config, first)["x"]
    assert image.shape == packed.shape
    assert np.allclose(image, packed, atol=1e-4)
    assert not image.reshape(-1, 20)[:, 18:].any()


def test_a_window_of_one_pixel_is_a_product_of_matrices() -> None:
    """All pixels are one row, so tiles are whole; padding or a stride keep the rows."""
    pixel = PLAIN.replace(kernel="1x1", pad="0x0", n=3)
    assert conv_of(pixel).in_one_row().ow == 3 * 36 and conv_of(pixel).in_one_row().oh == 1
    for other in (pixel.replace(pad="1x1"), pixel.replace(stride="2x1"), PLAIN):
        assert conv_of(other).in_one_row() == conv_of(other)
    assert conv_of(PLAIN.replace(pad="1x0")).runs == (1, 24)
    assert conv_of(PLAIN).runs == (3, 8)
    assert conv_of(PLAIN.replace(pad="0x0", dilation="1x2")).runs == (3, 8)


def test_an_image_too_wide_for_the_device_stays_in_a_buffer() -> None:
    wide = PLAIN.replace(ci=256, iw=1024, co=16)
    images = [c for c in SPEC.space(wide, "image") if SPEC.check(wide, c, GPU) is None]
    assert images == []
    broken = SPEC.check(wide, SPEC.safe(wide, GPU, "image"), GPU)
    assert broken is not None and "x image 65536 x 6 > 16384 x 16384" in broken.reason
    assert SPEC.check(wide, SPEC.safe(wide, GPU), GPU) is None


@pytest.mark.parametrize("layout", ["buffer", "image", "images"])
def test_the_safe_configuration_is_in_the_layout_that_is_asked(layout: str) -> None:
    for text in TINY["conv2d"]:
        workload = Workload.parse(text)
        assert SPEC.layout(workload, SPEC.safe(workload, GPU, layout)) == layout


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"groups": 3}, "3 groups of 8 and 8 channels"),
        ({"kernel": "9x3"}, "never fits"),
        ({"kernel": "3"}, "kernel=3"),
        ({"pad": "same"}, "pad=same: write rows and columns"),
        ({"stride": "0x1"}, "at least 1x1"),
        ({"act": "tanh"}, "tanh"),
    ],
)
def test_workloads_that_make_no_sense_are_told(change: dict[str, int | str], problem: str) -> None:
    text = str(PLAIN)
    for name, value in change.items():
        text = " ".join(f"{name}={value}" if w.startswith(f"{name}=") else w for w in text.split())
    with pytest.raises(UsageError, match=problem):
        survey(parse_workload(text), GPU)
