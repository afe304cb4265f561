"""Where a plan converts activations into images of their own.

A chosen configuration may read a tensor from an image (:meth:`~..kernels.spec.KernelSpec.
conversions`), while every tensor is written to its buffer. So a conversion is launched in front of
the first such reader. Its image serves all readers until something writes the tensor again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..kernels import SPECS
from ..kernels.types import Workload
from .choose import Choice
from .graph import Step

_IMAGE = " image"


@dataclass(frozen=True)
class Conversion(Step):
    """The launch that makes the image ``y`` of the tensor ``x``."""

    @property
    def source(self) -> str:
        return self.tensors["x"]

    @property
    def image(self) -> str:
        return self.tensors["y"]


def image_of(name: str) -> str:
    """What the image of a tensor is called among the planner's tensors."""
    return f"{name}{_IMAGE}"


def tensor_of(name: str) -> str:
    """The tensor whose image is called ``name``; ``name`` if it is none."""
    return name.removesuffix(_IMAGE)


def conversions_of(choices: Iterable[Choice]) -> list[Workload]:
    """What has to be launched for ``choices``, each once."""
    found = [
        SPECS[choice.workload.op].conversions(choice.workload, choice.config) for choice in choices
    ]
    return list(dict.fromkeys(workload for needed in found for workload in needed.values()))


def with_conversions(
    steps: Iterable[Step], choices: Mapping[Workload, Choice]
) -> list[Step | Conversion]:
    """``steps``, with conversions where what was chosen needs them; readers read the images.

    Every image is stale at the beginning: the host writes tensors between two runs of a plan.
    """
    found: list[Step | Conversion] = []
    fresh: list[Conversion] = []
    writes: dict[Workload, list[str]] = {}
    for step in steps:
        tensors = dict(step.tensors)
        spec, config = SPECS[step.workload.op], choices[step.workload].config
        for argument, workload in spec.conversions(step.workload, config).items():
            source = step.tensors[argument]
            conversion = Conversion(workload, {"x": source, "y": image_of(source)})
            if conversion not in fresh:
                found.append(conversion)
                fresh.append(conversion)
            tensors[argument] = conversion.image
        found.append(Step(step.workload, tensors))
        if fresh:
            if step.workload not in writes:
                writes[step.workload] = _written(choices[step.workload])
            stale = {step.tensors[name] for name in writes[step.workload]}
            fresh = [conversion for conversion in fresh if conversion.source not in stale]
    return found


def _written(choice: Choice) -> list[str]:
    """The arguments that a kernel writes."""
    arguments = SPECS[choice.workload.op].arguments(choice.workload, choice.config)
    return [a.name for a in arguments if a.role in ("output", "inout")]
