"""Where the cache files lie: one folder for a user, one file for a device."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path

_DEVICE_CHARACTERS = 40
_PLATFORM_CHARACTERS = 32


def cache_folder() -> Path:
    """``CLKILN_CACHE_DIR`` if it is set, else the user's data folder for clkiln.

    It lies among the data and not among the caches: parameters cost hours, and cleaners empty
    cache folders. The folder need not exist; without a home folder the path starts with ``~``,
    which :meth:`Store.open <clkiln.cache.store.Store.open>` refuses.
    """
    chosen = os.environ.get("CLKILN_CACHE_DIR")
    if chosen:
        return Path(os.path.expanduser(chosen))
    from platformdirs import user_data_dir

    return Path(user_data_dir("clkiln", appauthor=False))


def shipped_file(own: Path) -> Path | None:
    """The file shipped with the device whose own file is ``own``; it need not exist.

    It has the same name, in ``CLKILN_SYSTEM_CACHE_DIR`` or the system's data folder for clkiln (on
    Linux ``/usr/local/share/clkiln``). None for a file that lies elsewhere than cache files do:
    who names one means that one.
    """
    if own.parent != cache_folder():
        return None
    chosen = os.environ.get("CLKILN_SYSTEM_CACHE_DIR")
    if chosen:
        return Path(os.path.expanduser(chosen)) / own.name
    from platformdirs import site_data_dir

    return Path(site_data_dir("clkiln", appauthor=False)) / own.name


def cache_file(device_name: str, platform_name: str) -> Path:
    """The cache file of one device: readable, stable, safe as a file name on every system.

    The name depends on the device and its platform alone, so a driver update finds the file of the
    driver before it. Letters and digits of both names, then eight digits of a SHA-256 that tells
    apart what reads alike. White space is collapsed first: some drivers pad their names.
    """
    device, platform = (" ".join(name.split()) for name in (device_name, platform_name))
    digest = hashlib.sha256(f"{platform}\0{device}".encode("utf-8", "backslashreplace"))
    slugs = (_slug(device, _DEVICE_CHARACTERS), _slug(platform, _PLATFORM_CHARACTERS))
    return cache_folder() / ("-".join((*filter(None, slugs), digest.hexdigest()[:8])) + ".sqlite")


def _slug(name: str, length: int) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:length].strip("-")
