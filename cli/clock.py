"""Seconds since this process was started, the interpreter's own start included."""

from __future__ import annotations

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()


def since_process_start() -> float:
    """Seconds since the process was created; from this module's import where the system is silent.

    Linux notes a process's start in ticks (10 ms) since boot: proc(5), ``stat``, field 22.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
