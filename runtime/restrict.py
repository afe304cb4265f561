"""What a device that lacks features may build: sources that use one of them do not compile.

The compiler at hand has more than the device that is pretended, so a source is rewritten: a word
that a missing feature is used by becomes one that nobody knows, and enabling a missing extension an
error. Where the source itself leaves the line out, by its preprocessor, nothing happens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .features import FEATURES, lost

#: The version that specs ask for, and what takes its place where a device has none so new.
OPENCL_C, OLDER = "-cl-std=CL1.2", "-cl-std=CL1.1"

_PRAGMA = r"^[ \t]*#[ \t]*pragma[ \t]+OPENCL[ \t]+EXTENSION[ \t]+({})[ \t]*:[ \t]*(?!disable)\w+.*$"


def build_options(options: Iterable[str], features: Iterable[str]) -> list[str]:
    """``options`` for a device with ``features``: without OpenCL C 1.2 it is OpenCL C 1.1."""
    older = "cl12" not in features
    return [OLDER if older and option == OPENCL_C else option for option in options]


def restricted(text: str, without: Iterable[str]) -> str:
    """The source that compiles to the same, unless it uses a feature of ``without``."""
    gone = sorted(lost(without))
    prelude = ""
    for name in gone:
        feature = FEATURES[name]
        if feature.words:
            text = re.sub(rf"\b(?:{feature.words})\b", f"clkiln_without_{name}", text)
        for extension in feature.extensions:
            pattern = re.compile(_PRAGMA.format(extension), re.MULTILINE)
            text = pattern.sub(f"#error without {name} there is no {extension}", text)
            # A compiler enables what it has by itself, and warns of what it does not know.
            disabled = f"#pragma OPENCL EXTENSION {extension} : disable\n#undef {extension}\n"
            prelude += f"#ifdef {extension}\n{disabled}#endif\n"
    return f"{prelude}#line 1\n{text}" if prelude else text
