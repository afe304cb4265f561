"""Kernel sources: OpenCL C with its includes inlined, so that one digest covers all of it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A kernel's source with its includes inlined, its build options and the kernel's name."""

    text: str
    kernel: str
    options: tuple[str, ...]

    @property
    def digest(self) -> str:
        parts = (self.text, self.kernel, *self.options)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


_INCLUDE = re.compile(r'^\s*#include\s+"([\w./]+)"\s*$', re.MULTILINE)
_ROOM = Path(__file__).parent


@cache
def read_source(path: str) -> str:
    """The text of ``kernels/<path>``, every ``#include`` (of a path below ``kernels/``) inlined."""
    text = (_ROOM / path).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: read_source(match[1]), text)
