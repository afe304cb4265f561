"""Runs an engine on a small random model under Oclgrind; a program of its own, as clk_oclgrind.py.

Standard output gets the largest error of the logits, as JSON; what the simulator reports goes to
standard error. Arguments: model file, variant (buffer, image or free), and a limit profile or "".
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from clk_logits import free_errors
from clk_oclgrind import OPTIONS
from clkiln.inference.verify import Verifier
from clkiln.kernels.source import Source
from clkiln.kernels.spec import KernelSpec
from clkiln.kernels.types import Config, Workload
from clkiln.runtime.device import list_devices

PROMPTS, DECODED = (1, 5), 2
#: As few tokens as a vocabulary may have: the output head costs a simulator most.
VOCABULARY = 263

_source = KernelSpec.source


def without_optimiser(self: KernelSpec, workload: Workload, config: Config) -> Source:
    source = _source(self, workload, config)
    return replace(source, options=(*source.options, *OPTIONS))


def main(model: str, kind: str, profile: str) -> None:
    KernelSpec.source = without_optimiser  # type: ignore[method-assign]
    # What runs is compared here; what is for longer prompts would take minutes.
    Verifier.problem = lambda self, choice: None  # type: ignore[method-assign]
    (device,) = (d for d in list_devices() if d.info.platform == "Oclgrind")
    with tempfile.TemporaryDirectory() as folder:
        found = free_errors(
            Path(model), device, kind, Path(folder) / "cache.sqlite",
            prompts=PROMPTS, decoded=DECODED, limits=[profile] if profile else [],
        )  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
