"""``--limits`` and ``CLKILN_LIMITS``: what every command makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import clk_engine
from clk_cli import Result
from clkiln.cli.app import app
from clkiln.runtime.limits import PROFILES, read_limits
from clkiln.runtime.pretend import limited

Call = Callable[..., Result]


def test_devices_say_what_they_pretend(call: Call, device: str) -> None:
    words = ("devices", "--device", device, "--limits", "small", "--limits", "no-images")
    [row] = json.loads(call(*words, "--json").out)
    info = limited(clk_engine.a_device(), read_limits(["small", "no-images"])).info
    assert row["driver_key"] == info.driver_key
    assert row["limits"] == info.limits.as_list()
    assert (row["images"], row["local_memory"]) == (False, 32 << 10)
    text = call(*words).out
    start = text.index("   limited    ")
    assert "local memory 32.0 KiB of" in " ".join(text[start:].split())
    assert all(len(line) <= 80 for line in text[start:].splitlines())


def test_without_limits_nothing_is_said(call: Call, device: str) -> None:
    assert "limited" not in call("devices", "--device", device).out
    [row] = json.loads(call("devices", "--device", device, "--json").out)
    assert row["limits"] == []


def test_kernels_are_held_against_limits(call: Call, device: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    path.write_text('{"max_work_group_size": 4, "without": ["images"]}')
    for name, limit in (("add", "work-group 8-256 > 4 work-items"),
                        ("gemv", "the device lacks images")):  # fmt: skip
        result = call("kernels", name, "--device", device, "--limits", path)
        text = " ".join(result.out.split())
        assert limit in text
        assert "limited: no 2-d images, work-group 4 of" in text
        assert all(len(line) <= 80 for line in result.out.splitlines())


def test_run_says_what_it_ran_under(call: Call, model: Path, device: str) -> None:
    words = ("run", model, "Hi", "-n", 2, "--device", device, "--limits", "local-32k")
    done = json.loads(call(*words, "--json").out)
    assert [(e["name"], e["most"], e["from"]) for e in done["limits"]] == [
        ("local_memory", 32 << 10, "local-32k")
    ]
    result = call(*words, "--verbose")
    assert result.code == 0
    assert "limited:    local memory 32.0 KiB of" in result.err


def test_the_option_goes_before_the_environment(
    call: Call, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLKILN_LIMITS", "group-64,local-32k")
    words = ("devices", "--device", device, "--json")
    [row] = json.loads(call(*words).out)
    assert (row["max_work_group_size"], row["local_memory"]) == (64, 32 << 10)
    [row] = json.loads(call(*words, "--limits", "group-128").out)
    assert row["max_work_group_size"] == 128
    assert row["local_memory"] > 32 << 10


@pytest.mark.parametrize("through", ["flag", "environment"])
@pytest.mark.parametrize("command", ["run MODEL Hi", "bench MODEL", "tune MODEL", "kernels",
                                     "devices", "chat MODEL", "check MODEL",
                                     "cache rules"])  # fmt: skip
def test_limits_that_there_are_not(
    call: Call, model: Path, device: str, monkeypatch: pytest.MonkeyPatch, command: str,
    through: str,
) -> None:  # fmt: skip
    words = [str(model) if word == "MODEL" else word for word in command.split()]
    if through == "environment":
        monkeypatch.setenv("CLKILN_LIMITS", "smal")
    else:
        words += ["--limits", "smal"]
    result = call(*words, "--device", device)
    assert (result.code, result.out) == (2, "")
    where = "CLKILN_LIMITS: " if through == "environment" else ""
    assert result.err == f"error: {where}no limits 'smal'; did you mean small?\n"


def test_a_tuning_run_under_limits_is_previewed(call: Call, model: Path, device: str) -> None:
    words = ("tune", model, "--device", device, "--dry-run", "--json", "--kernel", "rmsnorm")
    free = json.loads(call(*words).out)
    tied = json.loads(call(*words, "--limits", "group-64").out)
    assert 0 < tied["feasible"] < free["feasible"]


def test_simulations_and_exports_have_no_device(call: Call) -> None:
    for option in (("--simulate", "x.json"), ("--export", "t4", "x.json")):
        result = call("tune", *option, "--limits", "small")
        assert (result.code, result.out) == (2, "")
        assert result.err == f"error: {option[0]} goes without --limits\n"


def test_doctor_speaks_of_the_variable(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that it looks at is the real one."""
    monkeypatch.setenv("CLKILN_LIMITS", "local-32k")
    checks = json.loads(call("doctor", "--json").out)["checks"]
    [said] = [check for check in checks if check["topic"] == "limits"]
    assert said["status"] == "note" and "local memory 32.0 KiB" in said["text"]
    monkeypatch.setenv("CLKILN_LIMITS", "smal")
    result = call("doctor", "--json")
    [said] = [c for c in json.loads(result.out)["checks"] if c["topic"] == "limits"]
    assert (result.code, said["status"]) == (1, "problem")
    assert said["text"] == "CLKILN_LIMITS: no limits 'smal'; did you mean small?"


def test_the_page_names_who_takes_them() -> None:
    page = (Path(__file__).parents[2] / "docs/limits.md").read_text(encoding="utf-8")
    sentence = page.partition("the smallest counts. ")[2].partition(" take it;")[0]
    told: list[str] = []
    for name in re.findall("`(.*?)`", sentence):
        group, _, members = name.rpartition(" ")
        told += [f"{group} {member}".strip() for member in members.split("|")]
    assert sorted(told) == sorted(_with_limits(app, ()))


def _with_limits(command: click.Command, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _with_limits(inner, (*path, name))
    elif any("--limits" in parameter.opts for parameter in command.params):
        yield " ".join(path)


def test_names_are_completed() -> None:
    from clkiln.cli.completers import limits

    found = [item.value for item in limits(None, None, "no-")]  # type: ignore[arg-type]
    assert found[1:] == [name for name in PROFILES if name.startswith("no-")]
