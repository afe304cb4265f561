"""``clkiln run``: what goes to which output, the JSON object, and ways to be cut short."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import clk_cli
import clk_engine
from clk_cli import Result
from clkiln.cache.store import Store
from clkiln.inference.engine import Engine

Call = Callable[..., Result]

QUESTION = "What is the capital of France?"
GREEDY = ("--temp", "0", "-n", "8")
FIELDS = {
    "text", "token_ids", "prompt_token_ids", "finish_reason", "device", "programs", "fallbacks",
    "limits", "timing", "seed",
}  # fmt: skip
TIMES = {
    "startup_s", "first_token_s", "load_s", "program_load_s", "prefill_tok_s", "decode_tok_s",
    "slowest_first_launch_s",
}  # fmt: skip


@pytest.fixture
def run(call: Call, model: Path, device: str) -> Call:
    """``run(...)`` is ``clkiln run MODEL ...`` on the tests' device."""

    def run_model(*arguments: object, **named: Any) -> Result:
        return call("run", model, *arguments, "--device", device, **named)

    return run_model


@pytest.fixture(scope="module")
def answer() -> Any:
    """The engine's own greedy answer."""
    with clk_engine.engine() as engine:
        return engine.generate(QUESTION, temperature=0, max_tokens=8)


def test_text_goes_to_standard_output_and_all_else_to_standard_error(
    run: Call, answer: Any
) -> None:
    result = run(QUESTION, *GREEDY)
    assert (result.code, result.out) == (0, answer.text + "\n")
    [warning] = result.err.splitlines()
    assert warning.startswith("warning: ")
    assert "clkiln tune would help" in warning


def test_the_prompt_may_come_from_standard_input(run: Call, answer: Any) -> None:
    assert run(*GREEDY, stdin=QUESTION).out == answer.text + "\n"
    assert run(*GREEDY, stdin=QUESTION + "\n").out == answer.text + "\n", "as echo writes it"
    assert run(*GREEDY, "-f", "-", stdin=QUESTION).out == answer.text + "\n"
    for nothing in ("", " \n\t\n"):
        result = run(*GREEDY, stdin=nothing)
        assert (result.code, result.out) == (2, "")
        assert result.err == "error: no prompt: give one as an argument or on standard input\n"


@pytest.mark.parametrize(
    "content",
    [QUESTION.encode(), f"{QUESTION}\n".encode(), f"\ufeff{QUESTION}\r\n".encode()],
    ids=["plain", "with a line break", "with a byte order mark"],
)
def test_the_prompt_may_come_from_a_file(
    run: Call, answer: Any, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "a prompt.txt"
    path.write_bytes(content)
    data = json.loads(run(*GREEDY, "--json", "-f", path, stdin="not this").out)
    assert data["prompt_token_ids"] == answer.prompt_token_ids


def test_only_one_line_break_is_no_part_of_a_prompt(run: Call, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("A poem:\n\n\n")
    ids = [
        json.loads(run(*words, *GREEDY, "--raw", "--json").out)["prompt_token_ids"]
        for words in (["--file", path], ["A poem:\n\n"])
    ]
    assert ids[0] == ids[1]


def test_prompt_files_that_are_none(run: Call, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    for content, problem in ((b"\xff\xfe", "is not UTF-8"), (b" \n\n", "no prompt in")):
        path.write_bytes(content)
        result = run("--file", path)
        assert (result.code, result.out) == (2, "")
        assert problem in result.err and str(path) in result.err
    path.write_text("Hello")
    result = run("Hello", "-f", path)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: two prompts, PROMPT and --file {path}: give one of them\n"


def test_a_float16_cache_is_asked_for(run: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = Engine.load

    def spy(*arguments: Any, **named: Any) -> Engine:
        asked.append(named["kv_dtype"])
        return load(*arguments, **named)

    monkeypatch.setattr(Engine, "load", spy)
    for flags in ([], ["--kv-dtype", "f16"]):
        assert run(QUESTION, *GREEDY, *flags).code == 0
    assert asked == ["f32", "f16"]


@pytest.mark.parametrize(("errors", "code"), [("strict", 2), ("surrogateescape", 0)])
def test_input_that_is_no_text(model: Path, device: str, errors: str, code: int) -> None:
    """Python reads it strictly in most locales, and in C's with stand-ins for odd bytes."""
    process = clk_cli.start(
        *("run", model, *GREEDY, "--device", device), env={"PYTHONIOENCODING": f"utf-8:{errors}"}
    )
    err = process.communicate(b"\xff\xfe what is this", timeout=60)[1].decode()
    assert process.returncode == code
    assert err.splitlines()[-1].startswith("error: the prompt" if code else "warning: ")


def test_json_is_one_object_with_the_fields_of_the_contract(run: Call, answer: Any) -> None:
    result = run(QUESTION, *GREEDY, "--json")
    data = json.loads(result.out)
    assert set(data) == FIELDS
    assert set(data["timing"]) == TIMES
    assert set(data["programs"]) == {"from_cache", "compiled"}
    assert data["text"] == answer.text
    assert data["token_ids"] == answer.token_ids
    assert data["prompt_token_ids"] == answer.prompt_token_ids
    assert data["finish_reason"] == "length"
    assert data["device"] == clk_engine.a_device().info.name
    assert sum(data["programs"].values()) > 10
    assert data["fallbacks"]
    assert all(isinstance(line, str) for line in data["fallbacks"])
    timing = data["timing"]
    assert all(value >= 0 for value in timing.values())
    assert timing["load_s"] + timing["program_load_s"] <= timing["startup_s"]
    assert timing["startup_s"] < timing["first_token_s"]


def test_json_of_a_single_token(run: Call) -> None:
    data = json.loads(run(QUESTION, "--temp", "0", "-n", "1", "--json").out)
    assert len(data["token_ids"]) == 1
    assert data["timing"]["decode_tok_s"] is None


def test_verbose_explains_on_standard_error(run: Call, answer: Any) -> None:
    result = run(QUESTION, *GREEDY, "--verbose")
    assert result.out == answer.text + "\n"
    info = clk_engine.a_device().info
    for start, content in {
        "device:": f"{info.name} (asked for with",
        "driver:": info.driver_version,
        "cache file:": os.environ["CLKILN_CACHE_DIR"],
        "kernels:": "default",
        "programs:": "from the cache file",
        "fallback:": "not tuned, safe default",
        "start:": "first token after",
        "prefill:": f"{len(answer.prompt_token_ids)} tokens",
        "decode:": "8 tokens",
    }.items():
        assert any(content in line for line in result.lines(start)), start


def test_sampling_flags_reach_the_sampler(run: Call, answer: Any) -> None:
    hot = (QUESTION, "-n", "8", "--temperature", "4")
    first, again, other = (run(*hot, "--seed", seed).out for seed in (5, 5, 6))
    assert first == again
    assert first != other
    greedy = answer.text + "\n"
    assert run(*hot, "--top-k", 1).out == greedy
    assert run(*hot, "--top-p", "1e-9").out == greedy
    assert first != greedy


def test_a_stop_string_ends_the_answer(run: Call, answer: Any) -> None:
    middle = answer.text[len(answer.text) // 2 :][:2]
    said = run(QUESTION, *GREEDY, "--stop", middle, "--stop", "never said", "--json").out
    data = json.loads(said)
    assert data["text"] == answer.text[: answer.text.index(middle)]
    assert data["finish_reason"] == "stop"


def test_a_system_message_comes_first(run: Call) -> None:
    plain, asked = (
        json.loads(run("Hello", *GREEDY, "--json", *flags).out)["prompt_token_ids"]
        for flags in ([], ["--system", "Be brief."])
    )
    assert asked[-len(plain) :] == plain
    assert len(asked) > len(plain)
    result = run("Hello", "--raw", "--system", "Be brief.")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: --raw has no place for --system")


@pytest.mark.parametrize("count", [0, 3])
def test_likelihoods(run: Call, answer: Any, count: int) -> None:
    data = json.loads(run(QUESTION, *GREEDY, "--logprobs", count, "--json").out)
    assert set(data) == {*FIELDS, "logprobs"}
    assert [token["id"] for token in data["logprobs"]] == answer.token_ids
    for token in data["logprobs"]:
        assert set(token) == {"id", "text", "logprob", "top"}
        assert token["logprob"] < 0
        assert [other["id"] for other in token["top"]][:1] == [token["id"]][:count], "greedy"
        likely = [other["logprob"] for other in token["top"]]
        assert likely == sorted(likely, reverse=True) and len(likely) == count
    result = run(QUESTION, *GREEDY, "--logprobs", count)
    assert result.out == answer.text + "\n"
    lines = result.err.splitlines()
    assert lines[1].split() == ["token", "logprob", "share", "likeliest"]
    rows = [line for line in lines[2:] if not line.startswith(" ")]
    assert len(rows) == len(answer.token_ids)
    assert all(len(line) <= 80 for line in lines[1:])


def test_more_likelihoods_than_tokens(run: Call) -> None:
    result = run(QUESTION, "--logprobs", 10**6)
    assert (result.code, result.out) == (2, "")
    assert "the model's vocabulary has 515" in result.lines("error: ")[0]


def test_a_raw_prompt_has_no_template(run: Call) -> None:
    plain, raw = (
        json.loads(run("Hello", *GREEDY, "--json", *flags).out)["prompt_token_ids"]
        for flags in ([], ["--raw"])
    )
    assert len(raw) < len(plain)
    assert "".join(map(str, raw)) in "".join(map(str, plain))
    assert run("", "--raw").code == 2


def test_a_prompt_longer_than_the_context(run: Call, answer: Any) -> None:
    count = len(answer.prompt_token_ids)
    assert run(QUESTION, *GREEDY, "-c", count).code == 0
    result = run(QUESTION, *GREEDY, "--ctx-size", count - 1)
    assert (result.code, result.out) == (1, "")
    assert result.lines("error: ")[0].startswith(f"error: the prompt has {count} tokens")


def test_a_required_cache(run: Call, tmp_path: Path) -> None:
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    result = run(QUESTION, *GREEDY, "--cache", cache, "--require-cache")
    assert (result.code, result.out) == (1, "")
    assert "not tuned" in result.err
    with clk_engine.engine(cache=cache) as engine:
        engine.generate(QUESTION, temperature=0, max_tokens=8)
        clk_engine.play_tuning(engine)
    result = run(QUESTION, *GREEDY, "--cache", cache, "--require-cache")
    assert (result.code, result.err) == (0, "")


def test_a_forced_kind_is_taken_by_every_operation(run: Call, answer: Any) -> None:
    result = run(QUESTION, *GREEDY, "--variant", "image", "--json")
    data = json.loads(result.out)
    assert data["text"] == answer.text
    assert "not as asked" not in result.err
    assert all('"variant":"image' in line for line in data["fallbacks"])


@pytest.mark.parametrize("command", ["run", pytest.param("tune", marks=pytest.mark.long)])
def test_what_a_device_cannot_run_is_listed(
    call: Call, model: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    device = clk_engine.a_device()
    small = replace(device, info=replace(device.info, max_alloc=2000))
    for place in ("inference.engine", "api.job"):
        monkeypatch.setattr(f"clkiln.{place}.choose_device", lambda *options: (small, "a test"))
    words = [QUESTION] if command == "run" else ["--budget", "1s"]
    result = call(command, model, *words)
    assert (result.code, result.out) == (1, "")
    first, *lines = result.err.splitlines()
    assert first.startswith(f"error: {device.info.name} can't run ") and first.endswith(":")
    assert all(line.startswith("  ") and len(line) <= 80 for line in lines)
    said = " ".join(" ".join(lines).split())
    for op in ("argmax", "gemm", "attention_prefill"):
        assert op in first
        assert f"{op} " in said
    assert "> 2000 bytes (largest allocation)" in said


@pytest.mark.parametrize("budget", ["1K", "100K"])
def test_a_memory_budget(run: Call, monkeypatch: pytest.MonkeyPatch, budget: str) -> None:
    monkeypatch.setenv("CLKILN_MEMORY_BUDGET", budget)
    result = run(QUESTION)
    assert (result.code, result.out) == (1, "")
    assert "does not fit" in result.err
    assert "weight " in result.err
    monkeypatch.setenv("CLKILN_MEMORY_BUDGET", "plenty")
    assert run(QUESTION).code == 2


# -- ways to be cut short --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that talks for seconds."""
    path = tmp_path_factory.mktemp("endless") / "endless.gguf"
    no_end = {"tokenizer.ggml.eos_token_id": 0}
    return clk_engine.variation(path, context=1 << 17, metadata=no_end)


def test_interrupted_while_it_generates(endless: Path, device: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    process = clk_cli.start(
        *("run", endless, QUESTION, "-n", 10**6, "-c", 1 << 17, "--temp", "1", "--seed", "1"),
        *("--device", device, "--cache", cache),
        # Where the tests themselves run in the background, the child would ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        said = process.stdout.read(1) + process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == "interrupted"
    assert b"Traceback" not in err
    assert said + out
    with Store.open(cache, write=False) as store:
        assert len(store.binaries()) > 10, "what was compiled is kept"
    with sqlite3.connect(cache) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.mark.parametrize(
    "arguments",
    ["-h", "run -h", "devices", "devices --json", "run MODEL hi", "run MODEL hi --json"],
)
def test_a_reader_that_went_away_is_no_error_message(
    model: Path, device: str, arguments: str
) -> None:
    words = [str(model) if word == "MODEL" else word for word in arguments.split()]
    if "MODEL" in arguments:
        words += ["--device", device]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = clk_cli.start(*words, stdout=writing)
    finally:
        os.close(writing)
    err = process.communicate(timeout=60)[1].decode()
    assert all(line.startswith("warning: ") for line in err.splitlines()), err


def test_a_terminal_that_lacks_a_character(model: Path, device: str) -> None:
    process = clk_cli.start(
        *("run", model, QUESTION, "--temp", "9", "--seed", "1", "-n", "200", "--device", device),
        env={"PYTHONIOENCODING": "latin-1"},
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"?" in out
