"""Which device runs a model: what the user asked for, or what was measured quickest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..cache.codec import now
from ..cache.paths import cache_file
from ..cache.store import Store
from ..errors import CacheError
from ..runtime.device import Device, default_device, select_device, selector_from_environment
from ..runtime.limits import read_limits
from ..runtime.pretend import Names, asked_limits, limited, limited_devices
from .config import ModelConfig


def speed_fact(digest: str) -> str:
    """Name of the fact that keeps a model's measured speed on a device."""
    return f"speed:{digest}"


def note_speed(
    store: Store,
    driver: str,
    config: ModelConfig,
    decode: float,
    prefill: float | None,
    *,
    tuned: bool,
) -> None:
    """Keep a model's measured speed (tokens per second) on a device, for :func:`choose_device`."""
    fact = {
        "model": config.name,
        "decode_tok_s": decode,
        "prefill_tok_s": prefill,
        "tuned": tuned,
        "measured": now(),
    }
    store.set_fact(speed_fact(config.digest), fact, driver=driver)


def choose_device(
    asked: str | Device | None, digest: str, warn: Callable[[str], None], limits: Names = ()
) -> tuple[Device, str]:
    """The device for the model with this digest, under ``limits``, and why.

    Raises :class:`~clkiln.errors.DeviceError` if there is none, or the selector fits none or many,
    and :class:`~clkiln.errors.UsageError` for limits that there are not.
    """
    if isinstance(asked, Device):
        return limited(asked, read_limits(limits)), "given by the caller"
    devices = limited_devices(asked_limits(limits))
    if asked:
        return select_device(asked, devices), f"asked for with {asked!r}"
    selector = selector_from_environment()
    if selector:
        return select_device(selector, devices), f"CLKILN_DEVICE is {selector!r}"
    return default_device(devices, measured_speeds(devices, digest))


def measured_speeds(devices: Sequence[Device], digest: str) -> dict[str, float]:
    """Decode tokens per second by driver key, from the cache files of the devices present."""
    speeds: dict[str, float] = {}
    for device in devices:
        path = cache_file(device.info.name, device.info.platform)
        if not path.exists():
            continue
        try:
            with Store.open(path, write=False, warn=lambda text: None) as store:
                fact = store.fact(speed_fact(digest), driver=device.info.driver_key)
        except CacheError:
            continue  # the device's own start will say so; here it only is no measurement
        if isinstance(fact, dict) and isinstance(fact.get("decode_tok_s"), (int, float)):
            speeds[device.info.driver_key] = float(fact["decode_tok_s"])
    return speeds
