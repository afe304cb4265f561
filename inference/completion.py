"""What an engine answers: the whole of it, its pieces, and how likely each token was."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length"]


class TopLogprob(NamedTuple):
    """One of the likeliest tokens at a place, with its natural logarithm of the probability."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token of an answer was: ``logprob`` is the natural logarithm.

    It comes from the model's own logits, before penalties, truncation and temperature. ``text`` is
    what the token alone decodes to (U+FFFD for bytes of a part of a character; a special token's
    name). ``top`` holds the likeliest tokens, likeliest first, as many as were asked for.
    """

    id: int
    text: str
    logprob: float
    top: list[TopLogprob]


@dataclass
class Completion:
    """An answer. Times are seconds, speeds tokens per second.

    ``token_ids`` are all tokens that were generated, the one that ended the answer included;
    ``text`` is what they say, without that one and without a stop string.
    ``finish_reason`` is ``stop`` (the model ended it, or a stop string came), ``length``
    (``max_tokens`` or the context ran out), or None while it is unfinished, as after an
    interruption.
    ``prefilled`` counts the prompt's tokens that were computed for this answer, ``reused`` those
    whose keys and values were in the KV cache already.
    ``logprobs`` has an entry for each of ``token_ids`` if they were asked for, else None.
    ``timing``: ``prefill_s``, ``decode_s``, ``first_token_s`` (from the call), ``prefill_tok_s``
    (of what was prefilled), ``decode_tok_s`` (None where there was nothing to time).
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    seed: int | None = None
    timing: dict[str, float | None] = field(default_factory=dict)
    logprobs: list[TokenLogprob] | None = None
    prefilled: int = 0
    reused: int = 0


class Stream:
    """An answer as it comes: iterate over it for pieces of text, always whole characters.

    ``completion`` grows meanwhile and is complete when the iteration is over. Stop iterating (or
    :meth:`close`) to end the answer early: the engine can be used on.
    """

    def __init__(
        self,
        pieces: Generator[str, None, None],
        completion: Completion,
        cancel: Callable[[], None],
    ) -> None:
        self._pieces, self.completion, self._cancel = pieces, completion, cancel

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer here; ``completion`` keeps what there is."""
        self._pieces.close()

    def cancel(self) -> None:
        """Let the iteration end after the launches at hand, a prompt's next chunk at the latest.

        Unlike :meth:`close` this may be called while a piece is computed: from a signal handler or
        another thread.
        """
        self._cancel()
