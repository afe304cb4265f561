"""What may be asked of an answer: one list of keywords, checked before anything is computed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clk_engine
from clkiln.errors import UsageError
from clkiln.inference.config import ModelConfig
from clkiln.inference.gguf import GGUFFile
from clkiln.inference.options import DEFAULT_TEMPERATURE, AnswerOptions, Options, PromptOptions

#: A sampler's attribute for each option that a model's file may have a default for.
OWN = {
    "temperature": ("temperature", DEFAULT_TEMPERATURE, st.floats(0, 2)),
    "top_k": ("top_k", 0, st.integers(0, 50)),
    "top_p": ("top_p", 1.0, st.floats(0.1, 1)),
    "min_p": ("min_p", 0.0, st.floats(0, 1)),
    "repeat_penalty": ("_repeat", 1.0, st.floats(0.5, 2)),
}


def test_the_keywords_are_those_of_the_types() -> None:
    names = {field.name for field in fields(Options)}
    assert AnswerOptions.__annotations__.keys() == names
    assert PromptOptions.__annotations__.keys() - names == {"raw", "system"}


def test_an_unknown_keyword_is_named() -> None:
    wrong: Any = {"temprature": 1}
    with pytest.raises(TypeError, match="'temprature'"):
        Options.of(wrong)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": -3}, "max_tokens is -3"),
        ({"logprobs": -1}, "logprobs is -1"),
    ],
)
def test_numbers_that_make_no_sense(options: AnswerOptions, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        Options.of(options)


@given(st.data())
def test_asked_for_then_the_models_own_then_nothing(data: st.DataObject) -> None:
    config = ModelConfig.from_gguf(GGUFFile.open(clk_engine.small_model()))
    asked: dict[str, Any] = {}
    for name, (attribute, neutral, values) in OWN.items():
        own, wanted = (data.draw(st.none() | values, label=name) for _ in range(2))
        config = replace(config, **{name: own})
        asked = {**asked, name: wanted}
        sampler = Options(**asked).sampler(config)
        expected = next(v for v in (wanted, own, neutral) if v is not None)
        assert getattr(sampler, attribute) == expected
