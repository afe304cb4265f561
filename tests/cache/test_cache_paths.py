"""Names of cache files: safe, stable, different for different devices."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clk_cache as kit
from clkiln.cache.paths import cache_file, cache_folder

any_name = st.text(max_size=200)


@kit.quick
@given(any_name, any_name)
def test_names_are_safe_on_every_system(device: str, platform: str) -> None:
    name = cache_file(device, platform).name
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,85}\.sqlite", name)


@kit.quick
@given(st.lists(st.tuples(any_name, any_name), min_size=2, max_size=2))
def test_two_devices_share_no_file(devices: list[tuple[str, str]]) -> None:
    first, second = (tuple(" ".join(name.split()) for name in device) for device in devices)
    assert (cache_file(*first) == cache_file(*second)) == (first == second)


@kit.quick
@given(any_name, any_name, st.text(" \t\n", max_size=5))
def test_padding_does_not_count(device: str, platform: str, padding: str) -> None:
    assert cache_file(device + padding, padding + platform) == cache_file(device, platform)


def test_names_are_readable_and_never_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLKILN_CACHE_DIR", "/somewhere")
    path = cache_file("cpu-AMD EPYC 9B14", "Portable Computing Language")
    # A user's hours of tuning lie under this name: a change of the rule would lose them.
    assert path == Path("/somewhere/cpu-amd-epyc-9b14-portable-computing-language-148c7792.sqlite")


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLKILN_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("CLKILN_CACHE_DIR", "~/kiln")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache_folder() == tmp_path / "kiln"


@pytest.mark.parametrize("unset", [True, False])
def test_folder_is_the_users_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unset: bool
) -> None:
    monkeypatch.setenv("CLKILN_CACHE_DIR", "")
    if unset:
        monkeypatch.delenv("CLKILN_CACHE_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "clkiln"
    assert cache_folder().name == "clkiln"
