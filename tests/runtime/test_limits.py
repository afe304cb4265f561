"""Limit profiles as data: names, files, several together, and what a device says under them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clk_devices import make_device, make_info
from clkiln.errors import UsageError
from clkiln.kernels import SPECS
from clkiln.runtime.features import FEATURES, known, lost
from clkiln.runtime.identity import split_key
from clkiln.runtime.limits import FIGURES, NO_LIMITS, PROFILES, Limits, read_limits
from clkiln.runtime.pretend import asked_limits, find_device, limited, limited_info


def profiles() -> st.SearchStrategy[dict[str, Any]]:
    """Any profile that may lie in a file."""
    number = st.integers(1, 1 << 40)
    sizes = st.lists(number, min_size=3, max_size=3)
    fields: dict[str, Any] = {
        name: sizes if name == "max_work_item_sizes" else number for name in FIGURES
    }
    without = st.lists(st.sampled_from(sorted(FEATURES)), unique=True)
    return st.fixed_dictionaries({}, optional={**fields, "without": without})


@given(profiles())
def test_the_text_of_limits_says_all_of_them(data: dict[str, Any]) -> None:
    limits = Limits.of(data, "here")
    again = Limits.parse(str(limits))
    assert [(e.name, e.most) for e in again.entries] == [(e.name, e.most) for e in limits.entries]
    assert bool(limits) == bool(str(limits))


@given(profiles(), profiles())
def test_together_the_smaller_figure_counts(one: dict[str, Any], two: dict[str, Any]) -> None:
    both = Limits.of(one, "one").also(Limits.of(two, "two"))
    for entry in both.entries:
        if entry.most is None:
            assert entry.name in [*one.get("without", []), *two.get("without", [])]
            continue
        given = [data[entry.name] for data in (one, two) if entry.name in data]
        if entry.name == "max_work_item_sizes":
            assert list(entry.most) == [min(column) for column in zip(*given, strict=True)]  # type: ignore[arg-type]
        else:
            assert entry.most == min(given)
    assert str(both) == str(Limits.of(two, "two").also(Limits.of(one, "one")))


@given(profiles(), profiles())
def test_one_after_the_other_is_both_at_once(one: dict[str, Any], two: dict[str, Any]) -> None:
    first, second = Limits.of(one, "one"), Limits.of(two, "two")
    at_once = limited_info(make_info(), first.also(second))
    in_turn = limited_info(limited_info(make_info(), first), second)
    # Whose profile is named may differ: the device's own figure was in the way of one.
    for info in (in_turn, limited_info(at_once, first)):
        assert info.driver_key == at_once.driver_key
        assert replace(info, limits=NO_LIMITS) == replace(at_once, limits=NO_LIMITS)
        assert [e.own for e in info.limits.entries] == [e.own for e in at_once.limits.entries]


@given(profiles())
def test_no_figure_grows_and_every_one_is_held(data: dict[str, Any]) -> None:
    info = make_info(features=frozenset(FEATURES))
    small = limited_info(info, Limits.of(data, "here"))
    for name in FIGURES:
        own, now = getattr(info, name), getattr(small, name)
        for before, after, most in zip(
            *map(_numbers, (own, now, data.get(name, own))), strict=True
        ):
            assert after <= min(before, most)
    assert not small.features & lost(data.get("without", []))
    assert not small.with_features("asm_x86", *FEATURES).features & lost(data.get("without", []))


def _numbers(figure: Any) -> tuple[int, ...]:
    return (figure,) if isinstance(figure, int) else tuple(figure)


@pytest.mark.parametrize("name", PROFILES)
def test_a_name_limits_a_typical_gpu(name: str) -> None:
    """Its local memory of 48 KiB is what a profile allows: that one alone changes nothing."""
    info = make_info(features=frozenset({"images", "fp16", "asm_ptx", "cl12", "image_buffers"}))
    small = limited_info(info, read_limits([name]))
    assert (small == info) == (name == "local-48k")
    assert (small.driver_key == info.driver_key) == (name == "local-48k")
    assert (name in str(small)) == (small != info)
    assert split_key(small.driver_key)[0] == info.driver_key
    assert json.loads(json.dumps(small.as_dict()))["limits"] == small.limits.as_list()


def test_what_the_names_say() -> None:
    info = make_info(features=frozenset({"images", "fp16", "asm_ptx", "cl12", "image_buffers"}))
    small = limited_info(info, read_limits(["small"]))
    assert (small.local_memory, small.max_work_group_size, small.max_alloc) == (
        32 << 10, 64, 128 << 20,
    )  # fmt: skip
    assert (small.image2d_max_width, small.image2d_max_height) == (4096, 4096)
    assert small.features == {"images"}
    assert not small.fp16 and "cl_khr_fp16" not in small.extensions
    none = limited_info(info, read_limits(["small", "no-images"]))
    assert (none.images, none.image2d_max_width, none.image_max_buffer_size) == (False, 0, 0)
    assert "image2d_max_width" not in [entry.name for entry in none.limits.entries]
    assert limited_info(info, read_limits(["no-asm"])).features == info.features - {"asm_ptx"}
    assert limited_info(info, read_limits(["cl-1.1"])).features == {"images", "fp16", "asm_ptx"}


def test_each_limit_names_its_profile() -> None:
    limits = read_limits(["local-48k", "no-images", "small"])
    assert limits.because("local_memory") == " (limits: small)"
    assert limits.because("images", "fp16") == " (limits: small, no-images)"
    assert limits.because("nothing") == ""
    assert limits.sources == ("small", "no-images")


def test_a_file_is_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "phone.json"
    path.write_text('{"local_memory": 16384, "without": ["images"]}')
    limits = read_limits([path, "local-32k"])
    assert str(limits) == "local_memory=16384,without=images"
    assert limits.sources == (str(path),)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"local_memory": 16384, "lokal": 1}', "there is no 'lokal'"),
        ('{"local_memry": 1}', "did you mean local_memory"),
        ('{"local_memory": "16K"}', "local_memory is '16K', not a number above 0"),
        ('{"local_memory": true}', "local_memory is True, not a number above 0"),
        ('{"max_alloc": 0}', "max_alloc is 0, not a number above 0"),
        ('{"max_alloc": 1.5}', "max_alloc is 1.5, not a number above 0"),
        ('{"max_work_item_sizes": [1, 2]}', "not three numbers above 0"),
        ('{"max_work_item_sizes": 64}', "not three numbers above 0"),
        ('{"without": "images"}', "without is 'images', not a list"),
        ('{"without": ["imags"]}', "without 'imags'; there is images"),
        ('{"without": [["images"]]}', "not a list"),
        ("[]", "an object with max_work_group_size"),
        ("null", "an object with"),
        ("{", "it is not JSON"),
        ("\0", "it is not JSON"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        read_limits([path])
    assert problem in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("local32k", "did you mean local-32k?"),
        ("zzz", "a JSON file, or local-32k, local-48k"),
        ("nothing.json", "cannot be read: No such file"),
        ("./nothing", "cannot be read: No such file"),
        ("x" * 5000, "a JSON file"),
        ("\0", "a JSON file"),
    ],
)
def test_a_name_that_there_is_not(name: str, problem: str) -> None:
    with pytest.raises(UsageError) as error:
        read_limits([name])
    assert problem in str(error.value)


@pytest.mark.parametrize("text", ["x", "local_memory=x", "=", "without=x", "local_memory=1,,", "-"])
def test_a_text_that_is_no_limits(text: str) -> None:
    with pytest.raises(UsageError):
        Limits.parse(text)


def test_the_environment_counts_where_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_limits() == NO_LIMITS
    monkeypatch.setenv("CLKILN_LIMITS", " local-32k, no-images,")
    assert asked_limits() == read_limits(["local-32k", "no-images"])
    assert asked_limits(["group-64"]) == read_limits(["group-64"])


def test_a_key_leads_to_the_device_and_its_limits() -> None:
    devices = [make_device(name=name) for name in ("one", "two")]
    small = limited(devices[1], read_limits(["small", "no-images"]))
    found = find_device(small.info.driver_key, devices)
    assert found is not None
    assert found.info.driver_key == small.info.driver_key
    assert found.info.as_dict() | {"limits": 0} == small.info.as_dict() | {"limits": 0}
    assert find_device(devices[0].info.driver_key, devices) == devices[0]
    assert find_device("0" * 32, devices) is None
    assert limited(devices[0], NO_LIMITS) is devices[0]


def test_what_variants_require_has_a_name() -> None:
    required = {name for spec in SPECS.values() for v in spec.variants for name in v.requires}
    assert required and [name for name in required if not known(name)] == []
    assert known("asm_x86") and not known("asmx") and not known("")
