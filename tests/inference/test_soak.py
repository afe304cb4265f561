"""Thousands of answers in one process: the same for the same questions, in the same memory."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clk_engine
from clk_cache import start_python
from clkiln.inference.engine import Engine

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm"),
]

#: Answers after which every size was seen: programs are loaded, plans bound, the KV cache grown.
#: And answers between two looks at the memory.
WARM = 50
#: KiB that the process may grow by from then on: half a KiB an answer, less than one kernel object,
#: buffer handle or completion that is kept. Measured on PoCL 3.1: 60 KiB in 2,000 answers, nearly
#: all of it in the first 500, which is what allocators take and don't give back.
SLACK = 1 << 10
#: As long as sizes of steps differ: below, at and above a bucket's, and over several chunks.
LENGTHS = (1, 2, 3, 7, 31, 32, 33, 64, 100, 129, 255, 256, 257, 300, 513)
LETTERS = "abcdefghijklmnopqrstuvwxyz ,.\n"

Ask = Callable[[Engine], list[int]]


def resident() -> int:
    """Bytes of this process that are in memory, without garbage that waits to be collected.

    What was freed is given back first: a leak would fill it before the process grew.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def asks(longest: int) -> list[Ask]:
    """Questions of every length, each greedy and with a seed; chats, and answers cut short."""
    rng = random.Random(0)
    found: list[Ask] = []
    for length in (n for n in LENGTHS if n <= longest):
        text = "".join(rng.choice(LETTERS) for _ in range(length))
        found.append(_generate(text, raw=True, temperature=0, max_tokens=rng.randint(1, 9)))
        options: dict[str, Any] = {"temperature": rng.choice((0.3, 0.8, 1.5)), "seed": length}
        options |= rng.choice(({}, {"top_k": 5}, {"repeat_penalty": 1.3}, {"logprobs": 2}))
        found.append(_generate(text, max_tokens=rng.randint(1, 9), **options))
    for turns in (1, 2, 4):
        found.append(_chat(turns))
    for taken in (1, 3):
        found.append(_cut_short(taken))
    return found


def _generate(text: str, **options: Any) -> Ask:
    return lambda engine: engine.generate(text, **options).token_ids


def _chat(turns: int) -> Ask:
    def ask(engine: Engine) -> list[int]:
        engine.runner.reset()  # what a chat finds in the KV cache may change its last bits
        messages, ids = list[dict[str, str]](), list[int]()
        for turn in range(turns):
            messages.append({"role": "user", "content": f"question {turn}"})
            answer = engine.chat(messages, temperature=0, max_tokens=4)
            messages.append({"role": "assistant", "content": answer.text})
            ids += answer.token_ids
        return ids

    return ask


def _cut_short(taken: int) -> Ask:
    def ask(engine: Engine) -> list[int]:
        stream = engine.stream("cut short", temperature=0, max_tokens=9)
        for _ in zip(range(taken), stream, strict=False):
            pass
        return stream.completion.token_ids[:taken]

    return ask


def soak(engine: Engine, count: int, pool: list[Ask]) -> list[int]:
    """Ask ``count`` times, all of ``pool`` in every round in another order; bytes at each look."""
    assert len(pool) < WARM, "all sizes are seen before the first look"
    rng, order = random.Random(1), list[int]()
    answers: dict[int, list[int]] = {}
    sizes, used = [], set[int]()
    for number in range(1, count + 1):
        if not order:
            order = rng.sample(range(len(pool)), len(pool))
        place = order.pop()
        got = pool[place](engine)
        assert got == answers.setdefault(place, got), f"answer {number} to question {place}"
        if number % WARM == 0:
            sizes.append(resident())
            used.add(engine.runner.context.memory.used)
    assert len(answers) == len(pool)
    assert len(used) == 1, f"bytes of tensors on the device: {sorted(used)}"
    return sizes


def growth(model: Path, count: int, longest: int, *, leak: int = 0) -> list[int]:
    """KiB that a process of its own grew by since its first :data:`WARM` answers, at each look.

    In one that did other things before, a leak would hide in what those freed. ``leak`` bytes are
    kept of each answer.
    """
    folder = Path(clk_engine.__file__).parent
    process = start_python(SCRIPT, folder, Path(__file__).parent, model, count, longest, leak)
    out, err = process.communicate()
    assert process.returncode == 0, err
    sizes, said = json.loads(out.splitlines()[-1])
    assert said == [], "neither clkiln nor OpenCL had anything to say"
    grown = [(size - sizes[0]) >> 10 for size in sizes]
    print(f"{sizes[0] / 2**20:.1f} MiB resident after {WARM} answers, growth in KiB: {grown}")
    return grown


def settled(grown: list[int]) -> int:
    """The median of the last fifth: one look may meet an allocator between two of its minds."""
    last = sorted(grown[-max(1, len(grown) // 5) :])
    return last[len(last) // 2]


SCRIPT = """
import json, logging, sys
sys.path[:0] = sys.argv[1:3]
import clk_engine, test_soak

said, kept = [], []
class Listener(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger("clkiln").addHandler(Listener(logging.WARNING))

def keeping(ask):
    def asked(engine):
        kept.append(bytearray(b"x" * int(sys.argv[6])))
        return ask(engine)
    return asked

with clk_engine.engine(test_soak.Path(sys.argv[3])) as engine:
    engine.runner.planner.warn = said.append
    pool = test_soak.asks(int(sys.argv[5]))
    pool = [keeping(ask) for ask in pool] if int(sys.argv[6]) else pool
    sizes = test_soak.soak(engine, int(sys.argv[4]), pool)
print(json.dumps([sizes, said]))
"""


def test_two_thousand_answers() -> None:
    assert settled(growth(clk_engine.small_model(), 2000, 600)) <= SLACK


def test_two_hundred_answers_of_a_real_model(model_file: Path) -> None:
    assert settled(growth(model_file, 200, 100)) <= SLACK


def test_what_stays_of_each_answer_shows() -> None:
    """The bound would see a single KiB."""
    assert settled(growth(clk_engine.small_model(), 2000, 64, leak=1024)) > SLACK
