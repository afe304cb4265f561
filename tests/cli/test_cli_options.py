"""Every option and argument of every command: wrong, missing and extreme values.

The table is the command line itself, so that no option is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import clk_engine
from clk_cli import Result
from clkiln.cli.app import app
from clkiln.cli.values import FilePath, Number, Text

Call = Callable[..., Result]


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that is no group, with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield (*names, name), command


COMMANDS = {" ".join(words): command for words, command in commands(app)}


def needed(command: click.Command) -> list[str]:
    """Something for each argument that a command can't do without."""
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    return ["nothing.gguf" for argument in arguments if argument.required]


def wrong_values(kind: click.ParamType) -> list[str]:
    """Values that are none, of an option's kind."""
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        found = ["cook", "", "nan", "1e", "0x10", "--"]
        found += ["inf", "-inf"] if isinstance(kind, Number) else ["1.5", "inf"]
        if kind.min is not None:
            found.append(str(kind.min - 1))
        if kind.max is not None:
            found.append(str(kind.max + 1))
        return found
    if isinstance(kind, click.Choice):
        return ["cook", "", " ".join(map(str, kind.choices))]
    if isinstance(kind, FilePath):
        return ["", "."]
    if isinstance(kind, click.Path):
        return ["nothing.txt", ".", "x" * 5000]
    return [""] if isinstance(kind, Text) else []


def is_usage(result: Result) -> bool:
    """Nothing on standard output, click's form on standard error, and 2.

    Of an option's missing value click says one line, without the usage above it.
    """
    usage, _, problem = result.err.rpartition("\n\n")
    formed = not usage or usage.startswith("Usage: clkiln")
    clear = problem.startswith("Error: ") and problem.count("\n") == 1
    return (result.code, result.out) == (2, "") and formed and clear


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_and_missing_values(call: Call, name: str) -> None:
    command, tried = COMMANDS[name], 0
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        for option in parameter.opts:
            if parameter.is_flag:
                wrong = [[f"{option}=1"]] if option.startswith("--") else []
            elif parameter.nargs > 1:
                wrong = [[option], [option, "t4"], [option, "cook", "file"]]
            else:
                wrong = [[option], *([option, value] for value in wrong_values(parameter.type))]
            for words in wrong:
                result = call(*name.split(), *needed(command), *words)
                assert is_usage(result), (words, result)
                tried += 1
    assert tried or name == "completion"


@pytest.mark.parametrize("name", COMMANDS)
def test_too_few_and_too_many_arguments(call: Call, name: str) -> None:
    words, there = name.split(), needed(COMMANDS[name])
    assert is_usage(call(*words, *there, "--no-such-option"))
    if there:
        assert is_usage(call(*words))
    arguments = [p for p in COMMANDS[name].params if isinstance(p, click.Argument)]
    if all(argument.nargs == 1 for argument in arguments):
        assert is_usage(call(*words, *["x"] * (len(arguments) + 1)))


def test_numbers_name_their_range(call: Call) -> None:
    result = call("run", "nothing.gguf", "hi", "--presence-penalty", "3")
    assert result.err.splitlines()[-1].endswith("3.0 is not in the range -2<=x<=2.")
    result = call("run", "nothing.gguf", "hi", "--temp", "nan")
    assert result.err.splitlines()[-1].endswith("nan is no finite number.")


# -- extremes --------------------------------------------------------------------------------------

HUGE = "9" * 400


@pytest.mark.parametrize(
    "flags",
    [
        ["--top-k", HUGE], ["--seed", HUGE], ["--temp", "1e300"], ["--temp", "1e-300"],
        ["--temp", "5e-324"], ["--top-p", "1e-300"], ["--min-p", "1"],
        ["--repeat-penalty", "1e300"], ["--repeat-penalty", "5e-324"],
        ["--presence-penalty", "2", "--frequency-penalty", "-2"], ["--stop", "x" * 10000],
        ["--stop", "\ud800"], ["--logprobs", "515"], ["--cache", "x" * 5000],
        ["--cache", "a\nb\t\x1b[31m"], ["--system", ""], ["-n", HUGE, "-c", "60"],
    ],
    ids=lambda flags: " ".join(word[:12] for word in flags).encode("unicode_escape").decode(),
)  # fmt: skip
def test_extreme_options_are_no_error(
    call: Call, model: Path, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = call("run", model, "Hi", "-n", 2, *flags, "--device", device)
    assert result.code == 0, result.err
    assert result.out


@pytest.mark.parametrize(
    "prompt",
    ["", "\0", "\n" * 50, "\udcff\udcfe", "<|im_end|><|endoftext|><|im_start|>", "\u202e\ufffe"],
    ids=["empty", "nul", "lines", "odd bytes", "special tokens", "odd characters"],
)
@pytest.mark.parametrize("command", ["run", "run --raw", "chat"])
def test_extreme_prompts(call: Call, model: Path, device: str, command: str, prompt: str) -> None:
    words, stdin = [*command.split(), model, "-n", 2, "--device", device], ""
    if command == "chat":
        stdin = f"{prompt}\n"
    else:
        words.append(prompt)
    result = call(*words, stdin=stdin)
    assert result.code == (2 if (command, prompt) == ("run --raw", "") else 0), result.err


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ("run MODEL LONG", 1, "tokens and the context 1024: shorten the prompt"),
        ("run MODEL Hi --system LONG", 1, "tokens and the context 1024: shorten the prompt"),
        ("run MODEL Hi -c HUGE", 2, "the model knows at most 1024"),
        ("run MODEL Hi --device LONG", 1, "no device matches"),
        ("run LONG Hi", 1, "too long"),
        ("pull LONG", 1, "too long"),
        ("bench MODEL -p HUGE", 2, "the model knows at most 1024"),
        ("bench MODEL -n HUGE", 2, "the model knows at most 1024"),
        ("cache info --cache LONG", 1, "too long"),
        ("cache clear --yes --cache /dev/null", 1, "is not a file"),
        ("report LONG", 1, "too long"),
        ("report /dev/null", 1, "/dev/null"),
        ("run /dev/null Hi", 1, "/dev/null is not a file"),
        ("kernels LONG", 2, "no kernel"),
        ("kernels --workload LONG", 2, "no kernel"),
    ],
)
def test_what_is_too_much(
    call: Call, model: Path, device: str, arguments: str, code: int, problem: str
) -> None:
    names = {"MODEL": str(model), "LONG": "x" * 5000, "HUGE": HUGE}
    words = [names.get(word, word) for word in arguments.split()]
    if "MODEL" in arguments and "--device" not in arguments:
        words += ["--device", device]
    result = call(*words)
    assert (result.code, result.out) == (code, "")
    errors = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert problem in errors[0]
    assert "--debug shows where" not in errors[0]


def test_a_cache_file_may_have_any_size(call: Call, tmp_path: Path) -> None:
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    result = call("cache", "prune", "--dry-run", "--cache", cache, "--max-size", HUGE)
    assert (result.code, result.err) == (0, "")
