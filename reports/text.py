"""How the report writes numbers and names, the same in the terminal and on the page."""

from __future__ import annotations

from ..kernels.types import Config
from ..units import readable, scaled, three_digits
from .model import CheckReport

MISSING = "-"
#: Bytes in binary units.
size = readable


def duration(seconds: float | None, micro: str = "us") -> str:
    """Seconds as people read them: ``12.3 us``, ``4.56 ms``, ``3 min 20 s``."""
    if seconds is None:
        return MISSING
    if seconds <= 0:
        return "0 s"
    if seconds < 59.95:
        return scaled(seconds * 1e9, 1000, ("ns", micro, "ms", "s"))
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def rate(per_s: float | None, unit: str) -> str:
    """A rate in decimal units: ``rate(2.1e10, "B/s")`` is ``21.0 GB/s``."""
    if per_s is None:
        return MISSING
    return scaled(per_s / 1e3, 1000, tuple(f"{prefix}{unit}" for prefix in ("k", "M", "G", "T")))


def percent(share: float | None) -> str:
    return MISSING if share is None else f"{share:.0%}"


def factor(value: float | None) -> str:
    return MISSING if value is None else f"{three_digits(value)}x"


def tokens(per_s: float | None) -> str:
    """Tokens per second, without the unit."""
    return MISSING if per_s is None else three_digits(per_s)


def day(moment: str) -> str:
    """An ISO time to the minute, as it was written; other texts unchanged."""
    return moment[:16].replace("T", " ") if moment[10:11] in ("T", " ") else moment or MISSING


def label(workload: str) -> str:
    """A workload's text without what it does not use, and a norm's epsilon, which costs nothing:
    ``gemv k=576 n=960 w=q4_1``."""
    parts = workload.split(" ")
    left_out = [p for p in parts if p.endswith(("=no", "=none")) or p.startswith("eps=")]
    return " ".join(part for part in parts if part not in left_out)


def parameters(config: str | None) -> str:
    """A configuration's text without JSON's punctuation: ``buffer: rows=4 wg=64``.

    A text that is no configuration is returned as it is.
    """
    if config is None:
        return MISSING
    try:
        parsed = Config.parse(config)
    except ValueError:
        return config
    pairs = " ".join(f"{name}={value}" for name, value in parsed.params)
    return f"{parsed.variant}: {pairs}" if pairs else parsed.variant


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 binary``, ``1,200 binaries``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def error(value: float | None) -> str:
    """A relative error: ``1.3e-07``; none at all is 0."""
    if value is None:
        return MISSING
    return f"{value:.1e}" if value else "0"


def verdict(check: CheckReport) -> str:
    """What came of a check, in a few words."""
    if check.problem or not check.ok:
        return f"WRONG: {check.problem or 'no reason is kept'}"
    return f"right, {plural(len(check.banned), 'ban')} made" if check.banned else "right"


def check_scope(check: CheckReport) -> str:
    """How much of a model a check compared."""
    parts = [f"{check.compared} of {check.launches} launches compared"]
    if check.repeat:
        bits = {True: ", the same bits", False: ", NOT the same bits", None: ""}[check.same]
        parts.append(f"{plural(check.repeat, 'repeat')}{bits}")
    if check.logits_error is not None:
        parts.append(f"logits {error(check.logits_error)} off the references")
    if check.short:
        parts.append("short form")
    return "; ".join(parts)
