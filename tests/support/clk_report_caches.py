"""Cache files for the tests of the report, as a tuner would have written them."""

from __future__ import annotations

import random
from pathlib import Path

from clk_cache import write_rules
from clkiln.cache.rows import BestRow, DriverRow, RunRow, TrialRow
from clkiln.cache.store import Store
from clkiln.kernels import SPECS
from clkiln.kernels.rules import Ban, Rules
from clkiln.kernels.types import Config, Workload

DRIVER = "5d1c0ffee0000001"
OLD_DRIVER = "5d1c0ffee0000000"
INFO = {
    "name": "cpu-znver3-AMD EPYC 7B13",
    "type": "cpu",
    "platform": "Portable Computing Language",
    "platform_version": "OpenCL 3.0 PoCL 3.0-rc2",
    "driver_version": "3.0-rc2",
    "compute_units": 2,
}
ROOF = {"roof.read_bytes_per_s": 28e9, "roof.flops_per_s": 120e9}
SPEED = {
    "model": "smollm2-135m",
    "decode_tok_s": 61.3,
    "prefill_tok_s": 402.5,
    "tuned": True,
    "measured": "2026-11-20T18:00:00Z",
}
#: A check as the engine keeps it, with a ban that it made.
CHECK = {
    "model": "smollm2-135m",
    "checked": "2026-11-20T18:05:00Z",
    "seconds": 24.5,
    "short": False,
    "ok": True,
    "problem": "",
    "repeat": 3,
    "launches": 1104,
    "compared": 1080,
    "same": True,
    "banned": [{"what": "gemv=image", "reason": "blk.0.qkv: y: 3 of 960 not finite"}],
    "logits": [{"positions": 23, "error": 1.3e-06, "allowed": 1e-3}],
    "operations": [
        {"op": "gemv", "variant": "buffer", "launches": 486, "compared": 480, "random": 5,
         "worst": 1.1e-06, "allowed": 2e-05},
        {"op": "argmax", "variant": "buffer", "launches": 6, "compared": 6, "random": 1,
         "worst": 0.0, "allowed": 0.0},
    ],
}  # fmt: skip
RULES = (
    Rules()
    .ban("gemv", "image", Ban("blk.0.qkv: y: 3 of 960 not finite", "check", "", "2026-11-20T18:05"))
    .pin("gemm", "buffer")
)
RESULT = {
    "decode_before": 14.2,
    "decode_after": 61.3,
    "prefill_before": 80.1,
    "prefill_after": 402.5,
    "trials": 240,
    "kernels": 8,
}
#: Workloads of a small Llama model, with the time of one launch when tuned, in seconds.
WORKLOADS = {
    Workload.of("gemv", bias="no", fuse="none", k=576, n=960, w="q4_1"): 31e-6,
    Workload.of("gemv", bias="no", fuse="none", k=576, n=49152, w="q4_1"): 980e-6,
    Workload.of("gemv", bias="no", fuse="swiglu", k=576, n=3072, w="q4_1"): 88e-6,
    Workload.of("gemm", bias="no", fuse="none", k=576, m=64, n=960, w="q4_1"): 1.9e-3,
    Workload.of("gemm", bias="no", fuse="none", k=1536, m=64, n=576, w="q4_1"): 2.7e-3,
    Workload.of("embedding", k=576, m=1, n=49152, w="q4_1"): 4e-6,
    Workload.of("rmsnorm", d=576, eps="1e-05", m=1): 6e-6,
    Workload.of("argmax", n=49152): 21e-6,
}
_ENDS = ("ok", "ok", "ok", "ok", "ok", "constraint", "compile error", "timeout", "wrong result")


def tuned(path: Path, *, seed: int = 0, trials: int = 40, roof: bool = True) -> Path:
    """A cache file after one finished run of the tuner; returns ``path``."""
    rng = random.Random(seed)
    with Store.open(path) as store:
        store.put_driver(DriverRow(DRIVER, INFO))
        for name, value in ROOF.items() if roof else ():
            store.set_fact(name, value, driver=DRIVER)
        store.set_fact(f"speed:{'5e' * 32}", SPEED, driver=DRIVER)
        store.set_fact(f"check:{'5e' * 32}", CHECK, driver=DRIVER)
        write_rules(store, DRIVER, RULES)
        run = store.start_run(RunRow("smollm2-135m", "normal", DRIVER, budget=300.0))
        for workload, time in WORKLOADS.items():
            search(store, str(workload), time, rng=rng, trials=trials, run=run)
        store.finish_run(run, 171.5, RESULT)
        store.put_binary("k1", b"binary" * 1000, label="gemv", driver=DRIVER)
        store.put_binary("k2", b"binary" * 2000, label="gemm", driver=DRIVER)
    return path


def search(
    store: Store,
    workload: str,
    time: float,
    *,
    rng: random.Random,
    trials: int,
    run: int | None = None,
    driver: str = DRIVER,
    digest: str | None = None,
) -> None:
    """Trials of one workload that end at ``time``, and the choice of the best of them."""
    op = workload.split(" ")[0]
    variants = [variant.name for variant in SPECS[op].variants] if op in SPECS else ["buffer"]
    digest = digest or (SPECS[op].digest() if op in SPECS else "0" * 16)
    default = time * rng.uniform(1.3, 5.0)
    best: TrialRow | None = None
    for number in range(trials):
        status = "ok" if number in (0, trials - 1) else rng.choice(_ENDS)
        slower = 1 + 4 * rng.random() * (1 - number / trials)
        row = TrialRow(
            workload=workload,
            driver=driver,
            digest=digest,
            config=str(Config.of(rng.choice(variants), rows=number, wg=rng.choice((32, 64, 128)))),
            status=status,
            time=time * (slower if number < trials - 1 else 1.0) if status == "ok" else None,
            spread=time * 0.02 if status == "ok" else None,
            repeats=20 if status == "ok" else 0,
            compile_time=rng.uniform(0.2, 0.5) if status != "constraint" else None,
            message="" if status == "ok" else f"{status} at rows={number}",
            run=run,
        )
        store.add_trial(row)
        if row.time is not None and (best is None or best.time is None or row.time < best.time):
            best = row
    if best is not None and best.time is not None:
        choice = BestRow(workload, driver, digest, best.config, best.time, default, complete=True)
        store.set_best(choice)
