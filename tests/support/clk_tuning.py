"""Tuning without a device: a worker whose trials take no time and end as a hash decides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clk_devices import make_info
from clkiln.cache.store import Store
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.kernels.uses import Use
from clkiln.kernels.variants import VariantRequest
from clkiln.runtime.device import DeviceInfo
from clkiln.runtime.program import program_key
from clkiln.tuner.levels import Level
from clkiln.tuner.roofs import FLOPS_FACT, READ_FACT
from clkiln.tuner.trial import Outcome

#: As many trials to a workload as keep a test quick, without a limit of time.
FEW = Level("normal", 2, None, 10)
#: As the level of that name, with fewer trials.
FAST = Level("fast", 1, 45.0, 6)
FREE = VariantRequest()

INFO = make_info()
DRIVER = INFO.driver_key
FAILURES = ("compile error", "launch error", "crash", "timeout", "wrong result", "constraint")


def gemv(n: int, fuse: str = "none", w: str = "q4_1") -> Workload:
    return Workload.of("gemv", bias="no", fuse=fuse, k=64, n=n, w=w)


def gemm(n: int, fuse: str = "none", w: str = "q4_1") -> Workload:
    return Workload.of("gemm", bias="no", fuse=fuse, k=64, m=8, n=n, w=w)


#: A model in small: a tied embedding, a fused layer read by two operations, and two of no weight.
USES = (
    Use(Workload.of("embedding", k=64, m=4, n=96, w="q4_1"), "decode", 1, 100, "tied"),
    Use(gemv(96), "decode", 1, 100, "tied"),
    Use(gemm(96), "prefill", 1, 4, "tied"),
    Use(gemv(48, "swiglu", "f16"), "decode", 3, 100, "up"),
    Use(gemm(48, "swiglu", "f16"), "prefill", 3, 4, "up"),
    Use(Workload.of("rmsnorm", d=64, m=1, eps="1e-05"), "decode", 7, 100),
    Use(Workload.of("rmsnorm", d=64, m=8, eps="1e-05"), "prefill", 7, 4),
    Use(Workload.of("add", d=64, m=1), "decode", 6, 100),
)


def chance(*parts: object) -> float:
    """A number in [0, 1) that depends on ``parts`` alone."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "little") / (1 << 48)


@dataclass
class Synthetic:
    """The device behind synthetic workers, and the clock that they advance.

    Every trial takes ``seconds``. One in ``1 / failing`` configurations fails, the safe ones
    never if ``sound_defaults``. ``noise`` is the largest relative error of a measured time.
    ``before`` is called ahead of each trial, with the trials so far. A conversion takes
    ``conversion`` seconds, which what needs one is charged with: so long that it pays for nothing.
    """

    failing: float = 0.0
    sound_defaults: bool = True
    info: DeviceInfo = INFO
    noise: float = 0.0
    seed: int = 0
    scale: float = 1.0
    seconds: float = 0.5
    conversion: float = 1.0
    before: Callable[[list[tuple[Workload, Config]]], None] = lambda trials: None
    trials: list[tuple[Workload, Config]] = field(default_factory=list)
    #: What was run only to see whether the device still works.
    checks: list[tuple[Workload, Config]] = field(default_factory=list)
    #: What the images were made with that candidates read.
    made: dict[Workload, Config] = field(default_factory=dict)
    now: float = 1000.0

    def true_time(self, workload: Workload, config: Config) -> float:
        conversions = SPECS[workload.op].conversions(workload, config)
        own = self.scale * 1e-4 * (0.2 + chance(self.seed, workload, config))
        return own + self.conversion * len(conversions)

    def fails(self, workload: Workload, config: Config) -> str | None:
        """The status of a failed trial; None for a configuration that works."""
        if chance("fails", self.seed, workload, config) >= self.failing:
            return None
        if self.sound_defaults and config == SPECS[workload.op].safe(workload, self.info):
            return None
        return FAILURES[int(chance("how", workload, config) * len(FAILURES))]

    def run(self, driver: str, workload: Workload, config: Config) -> Outcome:
        self.before(self.trials)
        self.trials.append((workload, config))
        return self._outcome(driver, workload, config)

    def check(self, driver: str, workload: Workload, config: Config) -> Outcome:
        self.checks.append((workload, config))
        return self._outcome(driver, workload, config)

    def _outcome(self, driver: str, workload: Workload, config: Config) -> Outcome:
        self.now += self.seconds
        status = self.fails(workload, config)
        if status is not None:
            return Outcome(status, "as planted")
        drift = 1 + self.noise * (2 * chance("noise", len(self.trials)) - 1)
        source = SPECS[workload.op].source(workload, config)
        key = program_key(driver, source)
        time = self.true_time(workload, config) * drift
        return Outcome("ok", time=time, repeats=5, key=key, binary=f"binary of {key}".encode())

    def worker(self, driver: str, **options: Any) -> SyntheticWorker:
        """Stands in for ``clkiln.tuner.process.Worker``."""
        return SyntheticWorker(self, driver)

    def monotonic(self) -> float:
        """Stands in for ``time.monotonic``."""
        return self.now


class SyntheticWorker:
    restarts = 0

    def __init__(self, device: Synthetic, driver: str) -> None:
        self.device, self.driver = device, driver

    def __enter__(self) -> SyntheticWorker:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def trial(
        self,
        workload: Workload,
        config: Config,
        best: float | None,
        *,
        extra: float = 0.0,
        made: Mapping[Workload, Config],
    ) -> Outcome:
        self.device.made |= made
        if best == 0.0:
            return self.device.check(self.driver, workload, config)
        return self.device.run(self.driver, workload, config)


def with_roofs(store: Store, driver: str) -> Store:
    """Say that the roofs are known (and far away), so that no run measures them."""
    store.set_fact(READ_FACT, 1e15, driver=driver)
    store.set_fact(FLOPS_FACT, 1e15, driver=driver)
    return store


def missing_binaries(store: Store, driver: str) -> list[str]:
    """The chosen configurations whose program is not in the file."""
    missing = []
    for row in store.best_rows(driver=driver):
        workload = Workload.parse(row.workload)
        source = SPECS[workload.op].source(workload, Config.parse(row.config))
        if not store.get_binaries([program_key(driver, source)]):
            missing.append(f"{row.workload} {row.config}")
    return missing


def split_groups(store: Store, driver: str, uses: Sequence[Use]) -> list[str]:
    """The groups whose chosen configurations do not share one layout."""
    layouts: dict[str, set[str | None]] = {}
    groups = {str(use.workload): use.group for use in uses if use.group}
    for row in store.best_rows(driver=driver):
        if row.workload in groups:
            layouts.setdefault(str(groups[row.workload]), set()).add(row.layout)
    return [group for group, found in layouts.items() if len(found) > 1]


def best_times(store: Store, driver: str = DRIVER) -> dict[str, float]:
    return {row.workload: row.time for row in store.best_rows(driver=driver)}


def best_configs(store: Store, driver: str = DRIVER) -> dict[str, str]:
    return {row.workload: row.config for row in store.best_rows(driver=driver)}


def request_seconds(times: dict[str, float], uses: Any = USES) -> float:
    return float(sum(use.cost(times[str(use.workload)]) for use in uses))


def safe_of(use: Use) -> Config:
    return SPECS[use.workload.op].safe(use.workload, INFO)
