"""The whole model around a tuning run: as it was with safe defaults, and as it runs now."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache.store import Store
from ..inference.model import Model
from ..kernels.variants import VariantRequest
from ..runtime.device import Device

if TYPE_CHECKING:
    from ..inference.engine import Engine

#: Tokens and repeats of the measurements before and after.
DECODE_TOKENS, DECODE_REPEATS = 32, 3
PREFILL_TOKENS, PREFILL_REPEATS = 256, 2
#: Programs of a cache file: key to label and binary.
Programs = Mapping[str, tuple[str, bytes]]


@dataclass(frozen=True)
class WholeModel:
    """A model on a device, as a tuning run was asked to load it."""

    model: Model
    device: Device
    quantize: str | None
    variants: VariantRequest

    def engine(self, cache: Path) -> Engine:
        """An engine from a cache file; it neither checks nor warns."""
        from ..inference.engine import Engine

        return Engine.load(
            self.model.path, self.device, cache, quantize=self.quantize,
            variant=str(self.variants).split(), check=False, warn=lambda text: None,
        )  # fmt: skip

    def speed(self, cache: Path) -> tuple[float, float]:
        """Decode and prefill tokens per second from a cache file."""
        from ..inference.speed import measure_decode, measure_prefill

        with self.engine(cache) as engine:
            decode = measure_decode(engine, DECODE_TOKENS, DECODE_REPEATS).median
            return decode, measure_prefill(engine, PREFILL_TOKENS, PREFILL_REPEATS).median

    def default_speed(self, programs: Programs) -> tuple[float, float]:
        """:meth:`speed` with safe defaults, whose ``programs`` are there already."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "defaults.sqlite"
            with Store.open(path) as store:
                for key, (label, binary) in programs.items():
                    driver = self.device.info.driver_key
                    store.put_binary(key, binary, label=label, driver=driver)
            return self.speed(path)
