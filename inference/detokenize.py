"""Text from tokens as they come: whole characters only, and never more than three bytes held."""

from __future__ import annotations

import codecs

from .tokenizer import Tokenizer


class StreamDecoder:
    """Decodes one generation. All pushes and the flush joined are ``Tokenizer.decode`` of all ids.

    A token may end inside a character; its first bytes wait for the next token. Bytes that cannot
    become a character are U+FFFD at once. ``continuation`` as in ``Tokenizer.decode``.
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
