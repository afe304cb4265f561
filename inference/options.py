"""What may be asked of an answer: how long, how sampled, where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypedDict

from ..errors import UsageError
from .config import ModelConfig
from .sampling import REPEAT_LAST_N, Sampler

DEFAULT_TEMPERATURE = 0.7


class AnswerOptions(TypedDict, total=False):
    """Keywords of :meth:`.engine.Engine.chat` and :meth:`.engine.Engine.chat_stream`.

    ``max_tokens`` (512) bounds the answer. ``temperature`` 0 is greedy; ``top_k``, ``top_p``,
    ``min_p``, ``repeat_penalty``, ``presence_penalty`` and ``frequency_penalty`` are as in
    :class:`.sampling.Sampler`. None is the model's own default, else a temperature of 0.7 and
    nothing of the others. ``stop`` strings end the answer before the first that is complete; they
    are not shown. ``logprobs`` N keeps the likelihood of each token and of the N likeliest. A
    ``seed`` makes a sampled answer repeatable.
    """

    max_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    presence_penalty: float
    frequency_penalty: float
    stop: Sequence[str]
    logprobs: int | None
    seed: int | None


class PromptOptions(AnswerOptions, total=False):
    """Keywords of :meth:`.engine.Engine.generate` and :meth:`.engine.Engine.stream`.

    As :class:`AnswerOptions`. ``system`` is a system message before the prompt. ``raw`` passes the
    prompt as it is, without the chat template.
    """

    raw: bool
    system: str | None


@dataclass(frozen=True)
class Options:
    """:class:`AnswerOptions` with defaults filled in. Raises ``UsageError`` for what makes no
    sense."""

    max_tokens: int = 512
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: Sequence[str] = ()
    logprobs: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; at least 1 token can be asked for")
        if self.logprobs is not None and self.logprobs < 0:
            raise UsageError(f"logprobs is {self.logprobs}; ask for 0 or more")

    @classmethod
    def of(cls, given: AnswerOptions) -> Options:
        """Raises ``TypeError`` for a keyword that there is not, by name."""
        known = {field.name for field in fields(cls)}
        for name in given:
            if name not in known:
                raise TypeError(f"unexpected keyword argument {name!r}")
        return cls(**given)

    def sampler(self, config: ModelConfig) -> Sampler:
        """The sampler asked for, with the model's own defaults where nothing was said."""

        def chosen(asked: float | None, own: float | None, neutral: float) -> float:
            return next(value for value in (asked, own, neutral) if value is not None)

        return Sampler(
            chosen(self.temperature, config.temperature, DEFAULT_TEMPERATURE),
            int(chosen(self.top_k, config.top_k, 0)),
            chosen(self.top_p, config.top_p, 1.0),
            self.seed,
            min_p=chosen(self.min_p, config.min_p, 0.0),
            repeat_penalty=chosen(self.repeat_penalty, config.repeat_penalty, 1.0),
            repeat_last_n=int(chosen(None, config.repeat_last_n, REPEAT_LAST_N)),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
        )
