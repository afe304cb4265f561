"""The engine as its callers see it: answers, their ends, errors, and starts that compile nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clk_engine
from clk_cache import Warnings
from clkiln.cache.rows import BestRow
from clkiln.cache.store import Store
from clkiln.errors import (
    CacheMissError,
    ContextLengthError,
    GenerationError,
    OutOfDeviceMemory,
    UsageError,
)
from clkiln.inference.engine import Engine
from clkiln.inference.plan import origins

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def engine() -> Engine:
    """One engine with the small model, for tests that only ask it things."""
    with clk_engine.engine() as loaded:
        yield loaded


def stop_at(engine: Engine, path: Path, place: int) -> tuple[Path, int]:
    """The small model with the greedy answer's token at ``place`` as its end; and that token."""
    answer = engine.generate(QUESTION, temperature=0, max_tokens=place + 1).token_ids
    metadata = {"tokenizer.ggml.eos_token_id": answer[place]}
    return clk_engine.variation(path, metadata=metadata), answer[place]


# -- answers ---------------------------------------------------------------------------------------


def test_20_greedy_answers_are_the_same_bits(tmp_path: Path) -> None:
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    seen = set()
    for _ in range(5):
        with clk_engine.engine(cache=cache) as engine:
            for _ in range(4):
                answer = engine.generate(QUESTION, temperature=0, max_tokens=40)
                seen.add((tuple(answer.token_ids), engine.runner.logits().tobytes()))
    assert len(seen) == 1


@pytest.mark.long
def test_the_real_model_answers_the_same_in_20_starts(model_file: Path) -> None:
    answers = set()
    for _ in range(20):
        with clk_engine.engine(model_file) as engine:
            answer = engine.generate(QUESTION, temperature=0)
            answers.add((answer.text, answer.finish_reason, engine.runner.logits().tobytes()))
    assert [answer[:2] for answer in answers] == [("The capital of France is Paris.", "stop")]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text(max_size=30), st.integers(0, 2**32), st.floats(0, 3), st.integers(1, 30))
def test_pieces_are_the_text_in_whole_characters(
    engine: Engine, prompt: str, seed: int, temperature: float, count: int
) -> None:
    stream = engine.stream(prompt, temperature=temperature, seed=seed, max_tokens=count)
    pieces = list(stream)
    answer = stream.completion
    assert all(pieces)
    assert "".join(pieces) == answer.text == engine.tokenizer.decode(answer.token_ids)
    for piece in pieces:
        assert piece.encode("utf-8").decode("utf-8") == piece
    assert answer.prompt_token_ids == engine.encode(prompt)
    assert answer.seed == seed
    assert (answer.finish_reason == "stop") == (answer.token_ids[-1] in engine.tokenizer.stop_ids)
    assert len(answer.token_ids) <= count


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 50), st.floats(0.1, 1))
def test_a_seed_repeats_a_sampled_answer(
    engine: Engine, seed: int, top_k: int, top_p: float
) -> None:
    options = {"temperature": 2.0, "top_k": top_k, "top_p": top_p, "max_tokens": 10}
    first = engine.generate(QUESTION, seed=seed, **options)
    engine.generate("something else", **options)
    assert engine.generate(QUESTION, seed=first.seed, **options).token_ids == first.token_ids


def test_without_a_seed_answers_differ_and_can_be_repeated(engine: Engine) -> None:
    answers = [engine.generate(QUESTION, temperature=3, max_tokens=10) for _ in range(3)]
    assert len({tuple(answer.token_ids) for answer in answers}) > 1
    again = engine.generate(QUESTION, temperature=3, max_tokens=10, seed=answers[0].seed)
    assert again.token_ids == answers[0].token_ids


def test_a_sampler_that_keeps_one_token_is_greedy(engine: Engine) -> None:
    greedy = engine.generate(QUESTION, temperature=0, max_tokens=10)
    sampled = engine.generate(QUESTION, temperature=5, top_k=1, max_tokens=10)
    assert sampled.token_ids == greedy.token_ids


def test_the_models_own_sampling_defaults_hold(tmp_path: Path, engine: Engine) -> None:
    path = clk_engine.variation(
        tmp_path / "m.gguf", metadata={"general.sampling.temp": 9.0, "general.sampling.top_k": 1}
    )
    greedy = engine.generate(QUESTION, temperature=0, max_tokens=10)
    with clk_engine.engine(path) as own:
        assert own.generate(QUESTION, max_tokens=10).token_ids == greedy.token_ids
        free = own.generate(QUESTION, top_k=0, max_tokens=10)
        assert free.token_ids != greedy.token_ids


# -- how an answer ends ----------------------------------------------------------------------------


def test_the_end_token_ends_the_answer(tmp_path: Path, engine: Engine) -> None:
    path, end = stop_at(engine, tmp_path / "m.gguf", 5)
    whole = engine.generate(QUESTION, temperature=0, max_tokens=20)
    first = whole.token_ids.index(end)
    with clk_engine.engine(path) as stopping:
        answer = stopping.generate(QUESTION, temperature=0, max_tokens=20)
    assert answer.finish_reason == "stop"
    assert answer.token_ids == whole.token_ids[: first + 1]
    assert answer.text == engine.tokenizer.decode(whole.token_ids[:first])


def test_max_tokens_ends_the_answer(engine: Engine) -> None:
    for count in (1, 2, 9):
        answer = engine.generate(QUESTION, temperature=0, max_tokens=count)
        assert (len(answer.token_ids), answer.finish_reason) == (count, "length")
        assert answer.timing["prefill_tok_s"] > 0
        assert (answer.timing["decode_tok_s"] is None) == (count == 1)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_full_context_ends_the_answer(engine: Engine, temperature: float) -> None:
    ids = engine.encode(QUESTION)
    for room in (0, 1, 3):
        with clk_engine.engine(ctx_size=len(ids) + room) as small:
            answer = small.generate(QUESTION, temperature=temperature, seed=1)
            # The last token needs no place: nothing is computed from it.
            assert (len(answer.token_ids), answer.finish_reason) == (room + 1, "length")


def test_a_prompt_that_does_not_fit_is_refused(engine: Engine) -> None:
    length = len(engine.encode(QUESTION))
    with (
        clk_engine.engine(ctx_size=length - 1) as small,
        pytest.raises(ContextLengthError, match=rf"{length} tokens.* {length - 1}.*--ctx-size"),
    ):
        small.stream(QUESTION)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ctx_size": 0}, "at least 1"),
        ({"ctx_size": 1025}, "at most 1024"),
        ({"kv_dtype": "f8"}, "f8"),
        ({"variant": ["imag"]}, "imag"),
        ({"variant": ["gemm=image", "gemv=buffer"]}, "gemv=buffer and gemm=image"),
        ({"variant": ["embedding=image", "gemv=buffer"]}, "embedding=image"),
    ],
)
def test_wrong_options_are_wrong_usage(options: dict[str, object], problem: str) -> None:
    with pytest.raises(UsageError, match=problem), clk_engine.engine(**options):
        pass


def test_wrong_generation_options_are_wrong_usage(engine: Engine) -> None:
    for options in ({"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}):
        with pytest.raises(UsageError):
            engine.stream(QUESTION, **options)
    with pytest.raises(UsageError, match="empty"):
        engine.generate("", raw=True)


def test_one_answer_at_a_time(engine: Engine) -> None:
    first, second = (engine.stream(text, temperature=0, max_tokens=9) for text in ("a", "b"))
    next(first)
    next(second)
    with pytest.raises(UsageError, match="one at a time"):
        list(first)
    assert (
        second.completion.text + "".join(second)
        == engine.generate("b", temperature=0, max_tokens=9).text
    )


# -- a cache that grows ----------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f16", "f32"])
def test_growing_changes_nothing(kv: str) -> None:
    """The KV cache grows past 512 positions, and attention's bucket with it, in the middle."""

    def answer(engine: Engine) -> list[bytes]:
        engine.runner.reset()
        engine.runner.feed(clk_engine.prompt(500, 515))
        found = []
        for step in range(25):
            found.append(engine.runner.logits().tobytes())
            engine.runner.pick(step)
            engine.runner.feed_pick()
        return found

    with clk_engine.engine(kv_dtype=kv) as growing, clk_engine.engine(kv_dtype=kv) as grown:
        assert growing.runner.capacity == 512
        first = answer(growing)
        assert growing.runner.capacity > 512
        grown.runner.feed(clk_engine.prompt(700, 515))
        assert answer(grown) == first == answer(growing)


def test_growing_in_the_middle_of_a_prompt() -> None:
    ids = clk_engine.prompt(900, 515)
    with clk_engine.engine() as whole, clk_engine.engine() as parts:
        whole.runner.feed(ids)
        for start in range(0, 900, 256):
            parts.runner.feed(ids[start : start + 256])
        assert (whole.runner.logits() == parts.runner.logits()).all()


def test_going_back_forgets(engine: Engine) -> None:
    ids = clk_engine.prompt(40, 515)
    runner = engine.runner
    runner.reset()
    runner.feed(ids[:30])
    runner.feed(ids[30:])
    expected = runner.logits()
    runner.feed([7] * 5)
    runner.reset(30)
    runner.feed(ids[30:])
    assert (runner.logits() == expected).all()
    with pytest.raises(ValueError, match="41 of 40"):
        runner.reset(41)


def test_tokens_that_are_none_are_refused(engine: Engine) -> None:
    engine.runner.reset()
    for ids in ([], [-1], [515], [3, 600]):
        with pytest.raises(ValueError):
            engine.runner.feed(ids)
    assert engine.runner.length == 0
    with pytest.raises(ContextLengthError):
        engine.runner.feed([1] * 1025)
    assert engine.runner.length == 0


# -- nonsense is never a token ---------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["output_norm.weight", "blk.1.attn_norm.weight"])
def test_logits_that_are_not_finite(
    tmp_path: Path, name: str, value: float, temperature: float
) -> None:
    def spoil(data: np.ndarray) -> None:
        data[3] = value

    path = clk_engine.with_tensor(tmp_path / "m.gguf", name, spoil)
    refuses_to_answer(path, temperature, "finite")


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_all_equal(tmp_path: Path, temperature: float) -> None:
    # Scales of zero: all that a kernel which wrote nothing could leave.
    path = clk_engine.with_tensor(tmp_path / "m.gguf", "output_norm.weight", lambda d: d.fill(0))
    refuses_to_answer(path, temperature, "all")


def refuses_to_answer(path: Path, temperature: float, problem: str) -> None:
    with clk_engine.engine(path) as engine:
        stream = engine.stream(QUESTION, temperature=temperature)
        with pytest.raises(GenerationError, match=problem) as caught:
            list(stream)
        assert "step 0" in str(caught.value)
        assert engine.device.name in str(caught.value)
        assert stream.completion.token_ids == []
        assert stream.completion.text == ""


def test_nonsense_later_on_names_its_step(engine: Engine) -> None:
    stream = engine.stream(QUESTION, temperature=0, max_tokens=9)
    next(stream)
    done = len(stream.completion.token_ids)
    table = engine.runner.planner.tensors["rope_table"]
    kept = table.read()
    table.write(np.full(table.shape, np.nan, np.float32))
    try:
        with pytest.raises(GenerationError, match=f"step {done}"):
            list(stream)
    finally:
        table.write(kept)
    assert len(stream.completion.token_ids) == done


# -- warm starts -----------------------------------------------------------------------------------


def test_what_was_compiled_is_kept(tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    with clk_engine.engine(cache=cache) as cold:
        answer = cold.generate(QUESTION, temperature=0, max_tokens=4)
        assert cold.runner.loader.counts.compiled > 10
    with clk_engine.engine(cache=cache) as warm:
        assert warm.generate(QUESTION, temperature=0, max_tokens=4).token_ids == answer.token_ids
        counts = warm.runner.loader.counts
        assert (counts.compiled, counts.from_cache) == (0, cold.runner.loader.counts.compiled)


def test_what_an_unfinished_answer_compiled_is_kept(tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    with clk_engine.engine(cache=cache) as cold:
        pieces = cold.stream(QUESTION, temperature=0, max_tokens=9)
        next(pieces), next(pieces)
    with clk_engine.engine(cache=cache) as warm:
        warm.generate(QUESTION, temperature=0, max_tokens=4)
        assert warm.runner.loader.counts.compiled == 0


def test_a_new_process_compiles_nothing(tmp_path: Path) -> None:
    """Not even the driver, whose own cache is empty: its first launches are as quick as others."""
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with clk_engine.engine(cache=cache) as engine:
        engine.generate(QUESTION, temperature=0, max_tokens=3)
        clk_engine.play_tuning(engine)
    command = [
        *(sys.executable, "-c", "from clkiln.cli import main; main()"),
        *("run", clk_engine.small_model(), QUESTION, "-n", "3", "--temp", "0", "--json"),
        *("--device", engine.device.selector, "--cache", cache, "--require-cache"),
    ]
    (tmp_path / "pocl").mkdir()
    environment = {**os.environ, "POCL_CACHE_DIR": str(tmp_path / "pocl")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["programs"]["compiled"] == 0
    assert report["programs"]["from_cache"] > 10
    assert report["fallbacks"] == []
    assert report["timing"]["slowest_first_launch_s"] < 0.05


# -- what the cache file says ----------------------------------------------------------------------


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A cache file in which all that the question takes is tuned."""
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with clk_engine.engine(cache=cache) as engine:
        engine.generate(QUESTION, temperature=0, max_tokens=3)
        clk_engine.play_tuning(engine)
    return cache


def test_a_required_cache_is_enough(tuned: Path) -> None:
    warnings = Warnings()
    with clk_engine.engine(cache=tuned, require_cache=True, warn=warnings.append) as engine:
        engine.generate(QUESTION, temperature=0, max_tokens=3)
        assert engine.runner.loader.counts.compiled == 0
        assert engine.tuned
        assert engine.fallbacks() == []
    assert warnings == []


def test_a_required_cache_must_be_tuned(tmp_path: Path) -> None:
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with (
        pytest.raises(CacheMissError, match=r"not tuned.*\(and \d+ more\).*clkiln tune"),
        clk_engine.engine(cache=cache, require_cache=True),
    ):
        pass


def test_a_required_cache_must_be_tuned_for_prompts_too(tmp_path: Path) -> None:
    cache = clk_engine.own_cache(tmp_path / "cache.sqlite")
    with clk_engine.engine(cache=cache) as engine:
        clk_engine.play_tuning(engine)  # of decoding alone: no prompt was there yet
    with clk_engine.engine(cache=cache, require_cache=True) as engine:
        engine.runner.feed([1])
        for _ in range(2):
            with pytest.raises(CacheMissError, match="attention_prefill"):
                engine.generate(QUESTION)


def test_a_required_cache_must_hold_the_programs(tuned: Path) -> None:
    with Store.open(tuned) as store:
        store.clear(binaries_only=True)
    with (
        pytest.raises(CacheMissError, match="no binary"),
        clk_engine.engine(cache=tuned, require_cache=True),
    ):
        pass


def test_parameters_of_another_driver_are_verified_and_used(tuned: Path) -> None:
    under_another_driver(tuned)
    for start in range(2):
        warnings = Warnings()
        with clk_engine.engine(cache=tuned, warn=warnings.append) as engine:
            engine.generate(QUESTION, temperature=0, max_tokens=3)
            assert set(origins(engine.runner.planner.choices)) == {"older driver"}
            assert not engine.tuned
            assert len(warnings) == 1, warnings
            assert "driver" in warnings[0]
            facts = engine.store.facts(engine.device.driver_key)
        verified = [name for name, _ in facts if name.startswith("verified ")]
        assert len(verified) == len(engine.runner.planner.choices), f"start {start}"
    with pytest.raises(CacheMissError, match="another driver"):
        clk_engine.engine(cache=tuned, require_cache=True).__enter__()


def test_wrong_parameters_of_another_driver_are_not_used(
    tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clkiln.harness.compare import Verdict
    from clkiln.harness.operation import Operation

    rows = under_another_driver(tuned)
    spoilt = {row.workload for row in rows if row.workload.startswith(("gemm", "argmax"))}
    verify = Operation.verify

    def verdict(self: Operation, *args: object, **named: object) -> Verdict:
        if str(self.workload) in spoilt:
            return Verdict(False, 1.0, "off by one")
        return verify(self, *args, **named)

    monkeypatch.setattr(Operation, "verify", verdict)
    warnings = Warnings()
    with clk_engine.engine(cache=tuned, warn=warnings.append) as engine:
        engine.generate(QUESTION, temperature=0, max_tokens=3)
        for workload, choice in engine.runner.planner.choices.items():
            assert choice.origin == ("default" if str(workload) in spoilt else "older driver")
    wrong = [line for line in warnings if "off by one" in line]
    assert len(wrong) == len(spoilt)
    assert len(warnings) == len(spoilt) + 1


@pytest.mark.parametrize("another", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        "", "{", "[]", '{"variant":"buffer"}', '{"variant":"carrier pigeon","LX":1}',
        '{"variant":"buffer","LX":"one","V":[1]}', "CHANGE 0", "CHANGE -1", "CHANGE 4096",
        "CHANGE 3", "CHANGE x",
    ],
)  # fmt: skip
def test_rows_that_make_no_sense_are_no_rows(tuned: Path, config: str, another: bool) -> None:
    """Whatever the file says: the start goes on, with the safe default in its place."""
    with clk_engine.engine(cache=tuned) as engine:
        expected = engine.generate(QUESTION, temperature=0, max_tokens=3).token_ids

    def spoil(text: str) -> str:
        if not config.startswith("CHANGE"):
            return config
        value = config.split()[1]
        own = json.loads(text)
        changed = {k: int(value) if value != "x" else value for k in own if k != "variant"}
        return json.dumps({**own, **changed})

    rows = under_another_driver(tuned, drop=not another)
    with Store.open(tuned) as store:
        clk_engine.plant(store, [replace(row, config=spoil(row.config)) for row in rows])
    warnings = Warnings()
    with clk_engine.engine(cache=tuned, warn=warnings.append) as engine:
        answer = engine.generate(QUESTION, temperature=0, max_tokens=3)
        chosen = set(origins(engine.runner.planner.choices))
    # Most of the parameters are no numbers like these; argmax has none, and stays as it is.
    assert "default" in chosen
    assert answer.token_ids == expected
    assert len(warnings) == 1


def under_another_driver(cache: Path, *, drop: bool = False) -> list[BestRow]:
    """Move the choices in a cache file to another driver's key, or with ``drop`` back to none."""
    with Store.open(cache) as store:
        rows = store.best_rows()
        drivers = store.drivers()
        store.clear(binaries_only=False)
        for driver in drivers:
            store.put_driver(driver)
        if drop:
            return rows
        moved = [replace(row, driver="0" * 32) for row in rows]
        clk_engine.plant(store, moved)
        return moved


# -- kinds of memory -------------------------------------------------------------------------------


def kinds(engine: Engine) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for workload, choice in engine.runner.planner.choices.items():
        found.setdefault(workload.op, set()).add(choice.config.variant)
    return found


@pytest.mark.parametrize(
    ("variant", "images"),
    [
        (["buffer"], set()),
        (["image"], {"gemv", "gemm", "embedding"}),
        (["gemv=image"], {"gemv", "gemm", "embedding"}),
        (["gemm=image"], {"gemv", "gemm", "embedding"}),
        (["image", "embedding=buffer"], set()),
    ],
)
def test_forced_variants_run(engine: Engine, variant: list[str], images: set[str]) -> None:
    expected = engine.generate(QUESTION, temperature=0, max_tokens=3)
    with clk_engine.engine(variant=variant) as forced:
        answer = forced.generate(QUESTION, temperature=0, max_tokens=3)
        for op, found in kinds(forced).items():
            assert found == {"image" if op in images else "buffer"}, op
        lacking = [line for line in forced.fallbacks() if "has no image variant" in line]
    assert bool(lacking) == (variant[0] == "image")
    assert answer.token_ids == expected.token_ids


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "what"), [("1K", "weight"), ("100K", "weight"), ("250K", "KV cache")]
)
def test_what_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch, budget: str, what: str
) -> None:
    monkeypatch.setenv("CLKILN_MEMORY_BUDGET", budget)
    with pytest.raises(OutOfDeviceMemory, match=rf"^{what} .* does not fit"), clk_engine.engine():
        pass


def test_the_budget_counts_what_is_held(engine: Engine) -> None:
    """Whatever was replaced while caches and activations grew has been given back."""
    planner, resident = engine.runner.planner, engine.runner.planner.resident
    held = [*planner.tensors.values(), *resident._parts.values()]
    assert engine.runner.context.memory.used == sum(tensor.nbytes for tensor in held)
