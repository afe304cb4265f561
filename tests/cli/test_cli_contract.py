"""What holds for every command: help, exit codes, one clear line for what went wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

import clk_devices
import clk_engine
from clk_cli import Result
from clkiln.inference.engine import Engine

Call = Callable[..., Result]

#: Every command with the flags of the contract, beside those that all have.
FLAGS: dict[str, str] = {
    "": "--version",
    "run": "--device --cache --json -n --max-tokens --temp --temperature --top-k --top-p --seed -c "
    "--ctx-size --raw --verbose --require-cache --variant --kv-dtype -f --file "
    "--system --min-p --repeat-penalty --presence-penalty --frequency-penalty --stop --logprobs "
    "--quantize --no-check --debug",
    "chat": "--device --cache --json -n --max-tokens --temp --temperature --top-k --top-p --seed "
    "-c --ctx-size --verbose --require-cache --variant --kv-dtype --system --min-p --load --stop "
    "--repeat-penalty --presence-penalty --frequency-penalty --quantize --no-check --debug",
    "tune": "--device --cache --json --level --budget --kernel --force --dry-run --variant "
    "--simulate --export --quantize --no-check --debug",
    "check": "--device --cache --json --repeat --against --kv-dtype --variant --quantize --debug",
    "bench": "--device --cache --json -p -n -r -o --variant --quantize --debug",
    "report": "--device --cache --json --html --kernel --debug",
    "cache": "",
    "cache path": "--device --cache --json --debug",
    "cache info": "--device --cache --json --debug",
    "cache clear": "--device --cache --json --binaries --yes --debug",
    "cache verify": "--device --cache --json --debug",
    "cache prune": "--device --cache --json --max-size --older-than --dry-run --debug",
    "cache ban": "--device --cache --json --reason --debug",
    "cache unban": "--device --cache --json --debug",
    "cache pin": "--device --cache --json --debug",
    "cache unpin": "--device --cache --json --debug",
    "cache rules": "--device --cache --json --debug",
    "models": "--json --debug",
    "models show": "--json --debug",
    "models rm": "--yes --json --debug",
    "pull": "--json --revision --debug",
    "completion": "--debug",
    "devices": "--device --cache --json --debug",
    "doctor": "--json --debug",
    "kernels": "--device --json --workload --debug",
}


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", FLAGS)
def test_help(call: Call, command: str, flag: str) -> None:
    result = call(*command.split(), flag)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: clkiln {command}".rstrip())
    words = result.out.replace(",", " ").split()
    assert set(FLAGS[command].split()) <= set(words)


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("command", FLAGS)
def test_help_fits_80_columns(
    call: Call, monkeypatch: pytest.MonkeyPatch, command: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = call(*command.split(), "-h").out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert not any("\x1b" in line for line in lines)


def test_help_lists_every_command(call: Call) -> None:
    listed = {line.split()[0] for line in call("-h").out.partition("Commands:")[2].splitlines()[1:]}
    assert listed == {command.split()[0] for command in FLAGS if command}


def test_version(call: Call) -> None:
    from clkiln import __version__

    assert call("--version") == Result(0, f"clkiln {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        "cook", "--cook", "run", "tune a b", "tune --kernel cook", "bench", "pull", "cache eat",
        "run MODEL a b", "run MODEL a --cook", "run MODEL a -n 0", "run MODEL a -n x",
        "run MODEL a --temp -1", "run MODEL a --temp warm", "run MODEL a --temp nan",
        "run MODEL a --temp inf", "run MODEL a --temp=", "run MODEL a --kv-dtype f8",
        "run MODEL a -f nothing.txt", "run MODEL -f .", "run MODEL -f", "run MODEL a -f -",
        "run MODEL a --top-k -1", "run MODEL a --top-p nan", "run MODEL a --seed 1.5",
        "run MODEL a --min-p -0.1", "run MODEL a --min-p 1.1", "run MODEL a --min-p much",
        "run MODEL a --repeat-penalty 0", "run MODEL a --repeat-penalty inf",
        "run MODEL a --presence-penalty 3", "run MODEL a --presence-penalty nan",
        "run MODEL a --frequency-penalty -2.5", "run MODEL a --frequency-penalty often",
        "run MODEL a --logprobs -1", "run MODEL a --logprobs 1e9", "run MODEL a --stop",
        "run MODEL a --stop=", "run MODEL a --raw --system b", "run MODEL a --system",
        "chat", "chat MODEL a", "chat MODEL --raw", "chat MODEL --logprobs 1", "chat MODEL -n 0",
        "chat MODEL --load nothing.json", "chat MODEL --load .", "chat MODEL --load MODEL",
        "chat MODEL -c 1025", "chat MODEL --variant tape", "chat MODEL --temp nan",
        "run MODEL a --top-p 0", "run MODEL a --top-p 1.5",
        "run MODEL a --seed -1", "run MODEL a -c 0", "run MODEL a -c 1025",
        "run MODEL a --variant tape", "run MODEL a --variant gemv", "run MODEL a --variant gemv=",
        "run MODEL a --variant gemv=tape", "run MODEL a --variant cook=image",
        "run MODEL a --variant roof_fma=image",
        "run MODEL a --variant gemv=image --variant gemm=buffer",
        "tune MODEL --quantize q4_0", "tune --quantize q8_0", "tune MODEL --quantize q3",
        "tune MODEL --level low", "tune MODEL --budget soon", "tune MODEL --budget 0",
        "tune MODEL --budget -5m", "tune MODEL --budget=", "tune MODEL --kernel cook",
        "tune MODEL --dry-run --kernel cook", "tune MODEL --variant tape",
        "bench MODEL -p -1", "bench MODEL -r 0", "bench MODEL -o pdf", "bench MODEL -p 0 -n 0",
        "completion cook", "completion bash zsh", "pull a b",
        "models cook", "models show", "models rm",
        "models rm a b", "devices a", "cache path a",
        "kernels cook", "kernels gemv gemm", "kernels --workload=", "kernels --workload cook",
        "kernels argmax --workload softmax",
        "cache prune --cache FILE --max-size huge", "cache prune --cache FILE --max-size 0",
        "cache prune --cache FILE --max-size=", "cache prune --older-than -1",
        "cache prune --older-than never", "cache prune --older-than nan", "cache verify a",
        "bench MODEL -p 5000", "bench MODEL --variant tape",
    ],
)  # fmt: skip
def test_wrong_usage(call: Call, model: Path, device: str, arguments: str) -> None:
    words = [str(model) if word == "MODEL" else word for word in arguments.split()]
    if "MODEL" in arguments:
        words += ["--device", device]
    result = call(*words)
    assert (result.code, result.out) == (2, ""), result
    assert is_one_line(result.err) or is_usage(result.err), result.err
    assert "--debug shows where" not in result.err


@pytest.mark.parametrize("group", ["", "cache"])
def test_a_group_alone_shows_its_help(call: Call, group: str) -> None:
    result = call(*group.split())
    assert (result.code, result.out) == (2, "")
    assert result.err == call(*group.split(), "-h").out


def is_one_line(err: str) -> bool:
    return err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")


def is_usage(err: str) -> bool:
    """Click's form: the usage, where to find help, and one line that says what is wrong."""
    head, _, problem = err.rpartition("\n\n")
    usage, hint = head.rsplit("\n", 1) if "\n" in head else ("", "")
    clear = problem.startswith("Error: ") and problem.count("\n") == 1
    return usage.startswith("Usage: clkiln") and hint.startswith("Try 'clkiln") and clear


# -- models ----------------------------------------------------------------------------------------


def damaged(folder: Path, what: str) -> tuple[object, str]:
    """A model that is none, and what the message says of it."""
    path, sound = folder / "model.gguf", clk_engine.small_model().read_bytes()
    if what == "missing":
        return path, "does not exist"
    if what == "unknown":
        return "smollm3", "did you mean smollm2-135m"
    if what == "directory":
        return folder, "is no model directory"
    if what == "architecture":
        return clk_engine.variation(
            path, architecture="gemma3"
        ), "unsupported architecture 'gemma3'"
    if what == "quantisation":
        # Rows of 256 columns, which the type asks for, where it comes first.
        mixed = clk_engine.mixture("q8_0", token_embd="tq2_0")
        return clk_engine.variation(path, dtype=mixed, hidden=256), "unsupported type tq2_0"
    contents = {
        "empty": b"",
        "foreign": b"\x7fELF" + bytes(range(256)) * 40,
        "text": b"GGUF is what I want\n" * 99,
        "header cut": sound[:3000],
        "weights cut": sound[: len(sound) // 2],
        "last byte cut": sound[:-1],
    }
    path.write_bytes(contents[what])
    return path, "model.gguf"


@pytest.mark.parametrize("command", ["run", "chat", "tune", "bench"])
@pytest.mark.parametrize(
    "what",
    [
        "missing", "unknown", "directory", "empty", "foreign", "text", "header cut", "weights cut",
        "last byte cut", "architecture", "quantisation",
    ],
)  # fmt: skip
def test_models_that_are_none(
    call: Call, tmp_path: Path, cache_dir: Path, device: str, command: str, what: str
) -> None:
    model, problem = damaged(tmp_path, what)
    before = files(tmp_path)
    result = call(command, model, "--device", device, stdin="Hello")
    one_line(result, problem)
    assert files(tmp_path) == before, "nothing is damaged, nothing is left behind"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(result: Result, problem: str, code: int = 1) -> None:
    assert (result.code, result.out) == (code, ""), result
    assert result.err.count("\n") == 1
    assert result.err.startswith("error: ")
    assert problem in result.err


# -- devices ---------------------------------------------------------------------------------------

USES_DEVICE = [
    "run MODEL hi", "chat MODEL", "tune MODEL", "tune MODEL --dry-run", "bench MODEL", "cache path",
    "cache info", "cache clear --yes", "cache verify", "cache prune", "kernels", "devices",
    "report",
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "through"),
    # Without a flag, devices and report show all that there is.
    [(command, "flag") for command in USES_DEVICE]
    + [(command, "environment") for command in USES_DEVICE if command not in ("devices", "report")],
)
def test_unknown_and_ambiguous_devices(
    call: Call, model: Path, monkeypatch: pytest.MonkeyPatch, command: str, through: str
) -> None:
    devices = clk_devices.numbered({"name": "Acme 1000"}, {"name": "Acme 2000"})
    monkeypatch.setattr("clkiln.runtime.device.list_devices", lambda: devices)
    words = [str(model) if word == "MODEL" else word for word in command.split()]
    for selector, problem in (
        ("teapot", "no device matches 'teapot'"),
        ("7", "no device matches '7'"),
        ("acme", "'acme' means several devices"),
    ):
        if through == "environment":
            monkeypatch.setenv("CLKILN_DEVICE", selector)
        result = call(*words, *(["--device", selector] if through == "flag" else []))
        one_line(result, problem)
        assert "0: Acme 1000" in result.err
        assert "1: Acme 2000" in result.err


@pytest.mark.parametrize("command", USES_DEVICE[:-3])
def test_no_device(call: Call, model: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr("clkiln.runtime.device.list_devices", list)
    words = [str(model) if word == "MODEL" else word for word in command.split()]
    one_line(call(*words), "pip install")


# -- what nobody foresaw ---------------------------------------------------------------------------


def test_an_unexpected_error_is_one_line(
    call: Call, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **named: object) -> None:
        raise RuntimeError("the kiln\n  is cold")

    monkeypatch.setattr(Engine, "load", fail)
    one_line(call("run", model, "hi"), "unexpected RuntimeError: the kiln is cold (--debug")


@pytest.mark.parametrize("arguments", ["run nothing.gguf hi", "run MODEL hi --device teapot"])
def test_debug_shows_the_traceback(call: Call, model: Path, arguments: str) -> None:
    words = [str(model) if word == "MODEL" else word for word in arguments.split()]
    quiet, loud = call(*words), call(*words, "--debug")
    assert (loud.code, loud.out) == (quiet.code, "")
    assert "Traceback (most recent call last)" in loud.err
    assert loud.err.splitlines()[-1] == quiet.err.strip()


def test_an_interrupt_is_130(call: Call, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "load", interrupt)
    assert call("run", model, "hi").code == 130


# -- cache files that can't be used ----------------------------------------------------------------


@pytest.mark.parametrize("command", ["run MODEL hi -n 2", "bench MODEL -p 4 -n 2 -r 1"])
@pytest.mark.parametrize("what", ["folder is a file", "foreign", "damaged", "newer"])
def test_a_cache_that_cannot_be_used_stops_nobody(
    call: Call,
    tmp_path: Path,
    model: Path,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    what: str,
) -> None:
    path = tmp_path / "cache.sqlite"
    if what == "folder is a file":
        path.write_bytes(b"not a folder")
        monkeypatch.setenv("CLKILN_CACHE_DIR", str(path / "below"))
        cache: list[object] = []
    else:
        spoil(path, what)
        cache = ["--cache", path]
    before = path.read_bytes()
    words = [str(model) if word == "MODEL" else word for word in command.split()]
    result = call(*words, "--device", device, *cache)
    assert result.code == 0
    assert result.out
    about_cache = [line for line in result.lines("warning: ") if str(path) in line]
    assert len(about_cache) == 1, result.err
    assert len(result.err.splitlines()) == 2, "that one, and that nothing is tuned"
    assert path.read_bytes() == before


def spoil(path: Path, what: str) -> None:
    if what == "foreign":
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE notes (text)")
        other.close()
    elif what == "newer":
        clk_engine.own_cache(path)
        with sqlite3.connect(path) as newer:
            newer.execute("PRAGMA user_version = 9999")
        newer.close()
    else:
        path.write_bytes(b"SQLite format 3\0" + bytes(5000))
