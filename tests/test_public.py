"""The public names: all there, documented, and cheap to name."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import clkiln

NAMES = [name for name in clkiln.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_what_it_is(name: str) -> None:
    thing = getattr(clkiln, name)
    assert thing.__name__ == name
    assert name in dir(clkiln)
    assert inspect.getdoc(thing)
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        if callable(value) and not member.startswith("_"):
            assert inspect.getdoc(value), f"{name}.{member}"
            assert "return" in inspect.get_annotations(getattr(value, "__func__", value))


def test_every_error_is_public() -> None:
    from clkiln import errors

    own = {
        n for n, c in vars(errors).items() if inspect.isclass(c) and c.__module__ == errors.__name__
    }
    assert own <= set(NAMES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'Engin'"):
        _ = clkiln.Engin


def test_the_package_alone_imports_no_library() -> None:
    code = (
        "import sys, clkiln; clkiln.ClkilnError\n"
        "assert not {'numpy', 'pyopencl', 'optuna', 'jinja2', 'click'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
