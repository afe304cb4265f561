"""How numbers with units are written: three digits, and the unit that makes them readable.

It lies outside the rooms because all of them write such numbers.
"""

from __future__ import annotations

import re


def readable(nbytes: float) -> str:
    """Bytes in binary units: ``4.40 MiB``."""
    if nbytes < 1024:
        return f"{nbytes:.0f} B"
    return scaled(nbytes / 1024, 1024, ("KiB", "MiB", "GiB", "TiB"))


def scaled(value: float, step: float, units: tuple[str, ...]) -> str:
    """``value``, given in the first of ``units``, in the largest that it reaches."""
    for unit in units[:-1]:
        # Three digits are shown, so 999.6 already rounds into the next unit.
        if abs(value) < step - 0.5:
            return f"{three_digits(value)} {unit}"
        value /= step
    return f"{three_digits(value)} {units[-1]}"


def three_digits(value: float) -> str:
    """``4.40``, ``44.0``, ``440``, ``4400``."""
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def parse_bytes(text: str) -> int | None:
    """``512M`` -> 536870912; None for what is no size, or none above 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?", text.strip(), re.IGNORECASE)
    if match is None:
        return None
    power = "KMGT".index(match[2].upper()) + 1 if match[2] else 0
    # A number beyond all bounds is beyond all memory, too.
    return int(min(float(match[1]), 2.0**64) * 1024**power) or None
