"""A conversation's token ids: what was generated stays as it was generated.

The text of an answer may encode to other tokens than those that were generated, and then nothing
after them in the KV cache could be used again. So the ids of earlier turns are kept, and only the
text that a new turn adds is encoded.
"""

from __future__ import annotations

from .completion import Completion
from .tokenizer import Tokenizer


class Transcript:
    """The last conversation: its text as the template renders it, and its ids.

    ``_borders`` are places, as (characters, ids), where a prompt or an answer ended.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = ""
        self._ids: list[int] = []
        self._borders: list[tuple[int, int]] = []
        self._answer: Completion | None = None

    def encode(self, text: str) -> list[int]:
        """Ids of the prompt ``text``; those of what it begins with are kept where it goes on from
        an earlier prompt and its answer.

        A kept part ends beside a special token, because elsewhere the encoding of what follows
        depends on it. Where the texts disagree (a template that drops old reasoning, an answer
        that was edited) ids are kept up to the last such place before.
        """
        self._take_answer()
        kept = (border for border in self._borders[::-1] if self._continues(text, *border))
        characters, count = next(kept, (0, 0))
        rest = text[characters:]
        ids = self._ids[:count]
        tokenizer = self._tokenizer
        ids += tokenizer.encode(rest, continuation=True) if count else tokenizer.prompt(rest)
        self._borders = [b for b in self._borders if b[0] <= characters and b[1] <= count]
        self._text, self._ids = text, ids
        self._borders.append((len(text), len(ids)))
        return list(ids)

    def answered(self, completion: Completion) -> None:
        """``completion`` answers, now or while it goes on, what was encoded last."""
        self._answer = completion

    def _take_answer(self) -> None:
        """Append the answer as far as its tokens say its text."""
        answer, self._answer = self._answer, None
        spelt = None if answer is None else self._spelling(answer)
        if answer is None or spelt is None or answer.prompt_token_ids != self._ids:
            return
        self._append(answer.text, spelt)
        last = answer.token_ids[-1:]
        if last and self._tokenizer.hidden(last[0]):
            # The token that ended the answer is part of the template in most formats.
            self._append(self._tokenizer.piece(last[0]), last)

    def _append(self, text: str, ids: list[int]) -> None:
        self._text, self._ids = self._text + text, self._ids + ids
        self._borders.append((len(self._text), len(self._ids)))

    def _spelling(self, answer: Completion) -> list[int] | None:
        """The generated ids that say ``answer.text``; None where none do, or hidden ones are
        among them, which a template would not repeat."""
        ids = answer.token_ids
        for count in range(len(ids), -1, -1):
            said = self._tokenizer.decode(ids[:count])
            if said == answer.text:
                while count and self._tokenizer.hidden(ids[count - 1]):
                    count -= 1
                hidden = any(map(self._tokenizer.hidden, ids[:count]))
                return None if hidden else ids[:count]
            if len(said) < len(answer.text):
                return None
        return None

    def _continues(self, text: str, characters: int, count: int) -> bool:
        """Whether ``text`` begins with the text before a border, and may be cut there."""
        if not count or not text.startswith(self._text[:characters]):
            return False
        tokenizer = self._tokenizer
        beside = tokenizer.hidden(self._ids[count - 1]) or tokenizer.control_at(text, characters)
        return beside or characters == len(text)
