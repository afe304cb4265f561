"""Wrong kernels, planted in copies of the real specs: for tests of those who have to find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from clkiln.kernels import SPECS
from clkiln.kernels.source import Source
from clkiln.kernels.spec import KernelSpec
from clkiln.kernels.types import Config, Workload

#: Adds one to the first output, at one launch in ten. The fourth number of a step's state is free,
#: and written anew with each step: within one, launches count up.
ONCE_IN_TEN = """
  if (get_global_id(0) == 0 && get_global_id(1) == 0 &&
      atomic_inc((volatile __global int *)(state + 3)) % 10 == 9) out[0] += 1.0f;
"""
#: NaN wherever an input of the norm lies between 48 and 64.
NAN_IN_A_RANGE = """
  for (int i = item; i < D; i += LX) {
    const float a = GET1(i, row, x);
    if (a > 48.0f && a < 64.0f) y[i] = NAN;
  }
"""

Where = Callable[[Workload, Config], bool]


def variant(*names: str) -> Where:
    """Only in the variants of these names."""
    return lambda workload, config: config.variant in names


def plant(
    monkeypatch: pytest.MonkeyPatch,
    op: str,
    *,
    behind: str = "",
    instead: tuple[str, str] = ("", ""),
    where: Where = lambda workload, config: True,
    only: str | None = None,
) -> KernelSpec:
    """Replace operation ``op`` in this process by a copy with a wrong kernel ``where`` it applies.

    ``behind`` is code at the kernel's end, ``instead`` a text of it and what stands there instead.
    ``only`` leaves the copy a single variant.
    """
    real = SPECS[op]

    class Sabotaged(type(real)):  # type: ignore[misc]
        def source(self, workload: Workload, config: Config) -> Source:
            source: Source = super().source(workload, config)
            if not where(workload, config):
                return source
            text = source.text
            if behind:
                text = f"{text.rstrip().removesuffix('}')}{behind}}}\n"
            old, new = instead
            assert old in text
            return replace(source, text=text.replace(old, new) if old else text)

    spec: Any = Sabotaged()
    if only is not None:
        spec.variants = tuple(each for each in real.variants if each.name == only)
    monkeypatch.setitem(SPECS, op, spec)
    return spec  # type: ignore[no-any-return]
