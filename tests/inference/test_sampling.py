"""Sampling: the right sets, the right frequencies, the same tokens again."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clkiln.errors import GenerationError, UsageError
from clkiln.inference.sampling import Sampler, check_logits, log_softmax

# Few distinct values, so that ties are the rule.
TIED = arrays(np.float32, st.integers(1, 40), elements=st.integers(-3, 3).map(float))
# Steps that a softmax can tell apart: which of two equal weights comes first is nobody's concern.
SPREAD = arrays(
    np.float32, st.integers(1, 40), elements=st.integers(-3000, 3000).map(lambda n: n / 100)
)


def softmax(logits: np.ndarray, temperature: float = 1) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def by_likelihood(logits: np.ndarray) -> list[int]:
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def allowed(logits: np.ndarray, top_k: int, top_p: float, min_p: float = 0) -> list[int]:
    """The ids that may come up, told plainly: sort, cut to k, take until p is reached, and drop
    what is too far below the first."""
    order = by_likelihood(logits)[: top_k or None]
    likely = softmax(logits[order])
    taken = [0.0, *np.cumsum(likely)]
    return [
        id
        for id, before, share in zip(order, taken, likely / likely[0], strict=False)
        if before < top_p - 1e-12 and share >= min_p
    ]


def penalised(
    logits: np.ndarray,
    prompt: list[int],
    generated: list[int],
    repeat: float,
    last_n: int,
    presence: float,
    frequency: float,
) -> list[float]:
    """The logits after penalties, told plainly, a token at a time."""
    everything = [*prompt, *generated]
    recent = everything if last_n < 0 else everything[max(len(everything) - last_n, 0) :]
    scores = []
    for id, logit in enumerate(logits.tolist()):
        if id in recent:
            logit = logit / repeat if logit > 0 else logit * repeat
        count = generated.count(id)
        scores.append(logit - count * frequency - (presence if count else 0))
    return scores


@given(logits=TIED | SPREAD)
def test_greedy_is_the_first_of_the_largest(logits: np.ndarray) -> None:
    assert Sampler(0).pick(logits) == by_likelihood(logits)[0]


@settings(deadline=None)
@given(
    logits=TIED | SPREAD,
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, 45),
    top_p=st.floats(0.05, 1),
    min_p=st.sampled_from([0, 0.001, 0.05, 0.3, 1]),
    seed=st.integers(0, 2**40),
)
def test_only_allowed_tokens_come_up(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    sampler = Sampler(temperature, top_k, top_p, seed, min_p=min_p)
    expected = allowed(logits, top_k, top_p + 1e-9, min_p * (1 - 1e-9))
    assert {sampler.pick(logits) for _ in range(20)} <= set(expected)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(0, 1.0, 0), (5, 1.0, 0), (0, 0.8, 0), (6, 0.7, 0), (1, 1, 0), (0, 1, 0.2), (9, 0.95, 0.1)],
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_probabilities(
    top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    logits = np.random.default_rng(3).normal(0, 1.5, 12).astype(np.float32)
    ids = allowed(logits, top_k, top_p, min_p)
    expected = np.zeros(12)
    expected[ids] = softmax(logits[ids], temperature)
    sampler, count = Sampler(temperature, top_k, top_p, seed=11, min_p=min_p), 6000
    found = np.bincount([sampler.pick(logits) for _ in range(count)], minlength=12) / count
    # Five standard deviations of a frequency.
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / count)).all()


def test_a_high_temperature_brings_no_dropped_token_back() -> None:
    logits = np.array([5, 4, 0, -1, -2], np.float32)
    sampler = Sampler(100.0, seed=0, min_p=0.1)
    assert {sampler.pick(logits) for _ in range(200)} == {0, 1}


TOKENS = st.lists(st.integers(0, 9), max_size=12)
PENALTIES = {
    "repeat": st.floats(0.1, 3),
    "last_n": st.sampled_from([-1, 0, 1, 4, 64]),
    "presence": st.floats(-2, 2),
    "frequency": st.floats(-2, 2),
}


@given(
    logits=arrays(np.float32, 10, elements=st.floats(-30, 30, width=32)),
    prompt=TOKENS,
    generated=TOKENS,
    penalties=st.fixed_dictionaries(PENALTIES),
)
def test_penalties_are_as_told(
    logits: np.ndarray, prompt: list[int], generated: list[int], penalties: dict[str, Any]
) -> None:
    expected = penalised(logits, prompt, generated, **penalties)
    sampler = Sampler(
        0,
        repeat_penalty=penalties["repeat"],
        repeat_last_n=penalties["last_n"],
        presence_penalty=penalties["presence"],
        frequency_penalty=penalties["frequency"],
    )
    for _ in range(2):  # an answer leaves nothing behind for the next
        sampler.begin(prompt)
        for token in generated:
            sampler.saw(token)
        np.testing.assert_allclose(sampler.penalised(logits), expected, rtol=1e-12, atol=1e-12)
    near = [id for id, score in enumerate(expected) if score >= max(expected) - 1e-9]
    assert sampler.pick(logits) in near


def test_penalties_that_are_off_change_nothing() -> None:
    for off in ({}, {"repeat_penalty": 2, "repeat_last_n": 0}):
        sampler = Sampler(0, **off)
        sampler.saw(1)
        assert sampler.plain
        assert sampler.pick(np.array([0, 1, -1], np.float32)) == 1
    assert not Sampler(0, presence_penalty=-1).plain
    assert not Sampler(1).plain


@pytest.mark.parametrize("repeat", [5e-324, 1e308])
@pytest.mark.parametrize("other", [-1.7e308, 1.7e308])
@pytest.mark.parametrize("temperature", [0, 1e-300, 1, 1e300])
def test_extreme_penalties_still_pick(repeat: float, other: float, temperature: float) -> None:
    extreme = {"presence_penalty": other, "frequency_penalty": other, "repeat_penalty": repeat}
    sampler = Sampler(temperature, seed=1, **extreme)
    sampler.begin([0, 1])
    for token in (1, 1, 2):
        sampler.saw(token)
    assert sampler.pick(np.array([3, -3, 2, 0.5], np.float32)) in range(4)


@given(logits=arrays(np.float32, 20, elements=st.floats(-1e4, 1e4, width=32)))
def test_log_softmax(logits: np.ndarray) -> None:
    found = log_softmax(logits)
    assert np.isclose(np.exp(found).sum(), 1)
    np.testing.assert_allclose(found - found[0], logits.astype(np.float64) - logits[0], atol=1e-9)


def test_nucleus_of_a_flat_distribution_is_large() -> None:
    logits = np.zeros(5000, np.float32)
    logits[4999] = 0.001
    picks = {Sampler(1.0, 0, 0.5, seed).pick(logits) for seed in range(400)}
    # The likeliest one, then the lowest ids, until half of the weight is reached.
    assert max(picks - {4999}) < 2501
    assert max(picks - {4999}) > 2300


def test_one_seed_one_sequence() -> None:
    logits = np.random.default_rng(0).normal(0, 1, (50, 100)).astype(np.float32)

    def draw(seed: int | None) -> tuple[int, list[int]]:
        sampler = Sampler(1.0, seed=seed)
        return sampler.seed, [sampler.pick(row) for row in logits]

    assert draw(7) == draw(7)
    assert draw(7)[1] != draw(8)[1]
    seed, drawn = draw(None)
    assert draw(seed)[1] == drawn
    assert draw(None)[0] != seed


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-3])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = np.array([1, 30000, -30000, 29990], np.float32)
    sampler = Sampler(temperature, seed=1)
    assert {sampler.pick(logits) for _ in range(50)} == {1}


class Ends:
    """The ends of the range of random numbers, where rounding could bite."""

    def __init__(self) -> None:
        self.values = cycle([0.0, 1 - 2**-53])

    def random(self) -> float:
        return next(self.values)


@given(others=st.lists(st.floats(-20, 0, width=32), max_size=9))
def test_tokens_without_weight_never_come_up(others: list[float]) -> None:
    none = np.float32(-1e30)
    logits = np.array([none, 0, *others, none], np.float32)
    sampler = Sampler(1.0)
    sampler._random = Ends()  # type: ignore[assignment]
    assert [sampler.pick(logits) for _ in range(2)] == [1, len(logits) - 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_k": -1}, "top-k -1"),
        ({"top_p": 0.0}, "top-p 0.0"),
        ({"top_p": 1.1}, "top-p 1.1"),
        ({"top_p": float("nan")}, "top-p nan"),
        ({"min_p": -0.1}, "min-p -0.1"),
        ({"min_p": 1.01}, "min-p 1.01"),
        ({"min_p": float("nan")}, "min-p nan"),
        ({"repeat_penalty": 0}, "repeat penalty 0"),
        ({"repeat_penalty": float("inf")}, "repeat penalty inf"),
        ({"presence_penalty": float("nan")}, "presence penalty nan"),
        ({"frequency_penalty": float("-inf")}, "frequency penalty -inf"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampler(**options)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@given(place=st.integers(0, 99))
def test_logits_that_are_not_finite_are_found(bad: float, place: int) -> None:
    logits = np.linspace(-1, 1, 100, dtype=np.float32)
    check_logits(logits, 3, "pocl")
    logits[place] = bad
    with pytest.raises(GenerationError, match="1 of 100 logits are not finite at step 3 on pocl"):
        check_logits(logits, 3, "pocl")


def test_equal_logits_are_found() -> None:
    check_logits(np.zeros(1, np.float32), 0, "pocl")
    with pytest.raises(GenerationError, match="all 9 logits are 0 at step 4 on pocl"):
        check_logits(np.zeros(9, np.float32), 4, "pocl")
