"""Text from tokens as they come: whole characters only, up to the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ..errors import UsageError
from .tokenizer import Tokenizer


class StreamDecoder:
    """Decodes one generation, and never holds more than three bytes.

    All pushes and the flush joined are ``Tokenizer.decode`` of all ids. A token may end inside a
    character; its first bytes wait for the next token. Bytes that cannot become a character are
    U+FFFD at once. ``continuation`` as in ``Tokenizer.decode``.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool = True, continuation: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip_space = tokenizer.leading_space and not continuation
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that ``id`` completes; often all of its own, sometimes none."""
        if self._skip_special and self._tokenizer.hidden(id):
            return ""
        data = self._tokenizer.token_bytes(id)
        if self._strip_space and data:
            data = data.removeprefix(b" ")
            self._strip_space = False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is still held, as U+FFFD; the decoder is fresh afterwards, inside the same text."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Cuts a text that comes in pieces before the first stop string that is complete.

    It does not matter where the pieces end. Of stop strings that are complete with the same
    character, the one that began first counts. What may still become a stop string is held back,
    so that no part of one is ever shown. Raises ``UsageError`` for an empty one.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        for stop in self._stops:
            if not isinstance(stop, str) or not stop:
                raise UsageError(f"stop string {stop!r} is empty or no text")
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        #: Whether a stop string came; nothing is let through any more.
        self.found = False

    def push(self, text: str) -> str:
        """What of the text so far is new and certain to be shown."""
        if not self._stops or self.found:
            return "" if self.found else text
        text, self._held = self._held + text, ""
        places = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            self.found = True
            return text[: min(places)[1]]
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                text, self._held = text[:-size], text[-size:]
                break
        return text

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        text, self._held = self._held, ""
        return text
