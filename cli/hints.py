"""What would make a machine faster, one thing to do each: the last checks of ``clkiln doctor``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import CacheError
from .checks import Check, Machine

#: What a model's measured speed is called in a cache file; its digest follows.
_SPEED = "speed:"


def check_drivers_to_try(machine: Machine) -> Iterator[Check]:
    """CPU drivers that may be quicker than those that are there."""
    from ..runtime.machine import cpu_flags

    cpus = [row for row in machine.devices if row["type"] == "cpu"]
    pocl = [row for row in cpus if "PoCL" in row["platform_version"]]
    if pocl and "avx512f" in cpu_flags() and all(_is_from_pip(row) for row in pocl):
        yield Check(
            "faster", "note", "this processor has AVX-512, which PoCL from pip does not use",
            "sudo apt install pocl-opencl-icd (a newer PoCL), then clkiln tune MODEL",
        )  # fmt: skip
    x86 = sys.platform == "linux" and platform.machine() == "x86_64"
    if cpus and x86 and not _installed("intel-opencl-rt") and not _has_intel(cpus):
        yield Check(
            "faster", "note", "Intel's CPU runtime (for AMD, too) may be quicker: try it",
            "pip install 'clkiln[intel]', then clkiln tune MODEL --device intel",
        )  # fmt: skip


def _is_from_pip(row: Mapping[str, Any]) -> bool:
    """The PoCL of pyopencl's wheel is 3.0; distributions name themselves."""
    return "PoCL 3.0" in row["platform_version"] and "debian" not in row["driver_version"]


def _has_intel(cpus: list[Mapping[str, Any]]) -> bool:
    return any("intel" in row["platform"].lower() for row in cpus)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_tuning(machine: Machine) -> Iterator[Check]:
    """Whether models were tuned and measured where they run quickest."""
    speeds = {row["index"]: _speeds(row) for row in machine.devices if not row["fault"]}
    if len(speeds) > 1 and not any(speeds.values()):
        count = len(speeds)
        yield Check(
            "faster", "note", f"{count} devices and none measured: a rule picks one",
            "clkiln tune MODEL --device 0, then 1, ...; the quickest is taken then",
        )  # fmt: skip
    elif speeds and not any(speeds.values()):
        yield Check("faster", "note", "no model was tuned here: safe defaults run",
                    "clkiln tune MODEL (45 s with --level fast)")  # fmt: skip
    models = {name for found in speeds.values() for name in found}
    for name in sorted(models):
        known = {index: found[name] for index, found in speeds.items() if name in found}
        best = max(known, key=lambda index: known[index]["decode_tok_s"])
        model = known[best].get("model") or "MODEL"
        if not known[best].get("tuned"):
            yield Check("faster", "note", f"{model} runs quickest on device {best}, untuned",
                        f"clkiln tune MODEL --device {best}")  # fmt: skip
        for index in sorted(speeds.keys() - known.keys()):
            yield Check("faster", "note", f"{model} was never measured on device {index}",
                        f"clkiln tune MODEL --device {index}")  # fmt: skip


def _speeds(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A device's measured speeds, by the digest of the model."""
    from ..cache.store import Store

    path = Path(row["cache_file"])
    if not path.exists():
        return {}
    try:
        with Store.open(path, write=False, warn=lambda text: None) as store:
            facts = store.facts(row["driver_key"])
    except CacheError:
        return {}  # the check of cache files says so
    return {
        name.removeprefix(_SPEED): value
        for (name, _), value in facts.items()
        if name.startswith(_SPEED) and isinstance(value, dict) and _rate(value) is not None
    }


def _rate(value: Mapping[str, Any]) -> float | None:
    rate = value.get("decode_tok_s")
    return float(rate) if isinstance(rate, (int, float)) else None
