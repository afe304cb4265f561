"""What every reader of model files owes a broken one: one clear line, and no memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from clkiln.errors import ModelError, UnsupportedModel

Open = Callable[[Path], object]


def refuses(open_file: Open, path: Path, data: bytes, message: str, *, unsupported: bool) -> None:
    """``data`` at ``path`` is refused with ``message``, before anything is allocated from it.

    ``unsupported``: the file is sound, and asks for what clkiln lacks.
    """
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=message) as caught:
            open_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, UnsupportedModel) == unsupported


def refuses_what_is_no_file(open_file: Open, folder: Path) -> None:
    (folder / "empty").touch()
    for name, message in [("none", "not exist"), ("empty", "empty"), (".", "not a file")]:
        with pytest.raises(ModelError, match=message):
            open_file(folder / name)
