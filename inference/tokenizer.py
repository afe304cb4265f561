"""Text to token ids and back, and how a GGUF file's own metadata says so.

Special tokens are found in the text first; what lies between them goes to the encoder of the
file's kind (:mod:`.bpe`, :mod:`.spm`). Decoding is bytes first, text second, because one character
may lie across tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from ..errors import ModelError, UnsupportedModel, UsageError
from .bpe import ByteLevelBPE
from .spm import SentencePieceBPE, byte_of

# Token types of GGUF (tokenizer.ggml.token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

#: Tokens that end a turn in the chat formats of llama and qwen2 models, whatever the file's
#: ``eos_token_id`` says; a file often names only one of them.
END_NAMES = frozenset(
    "</s> <|im_end|> <|eot_id|> <|eom_id|> <|end_of_text|> <|endoftext|> <|end|>".split()
)
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class Encoder(Protocol):
    """Encodes text that holds no special tokens."""

    def encode(self, text: str) -> list[int]: ...

    def piece_bytes(self, piece: str) -> bytes: ...


class Tokenizer:
    """A model's tokenizer; immutable, so one can serve many threads.

    ``bos`` and ``eos`` are ids or None. ``add_bos`` says that a prompt starts with BOS
    (:meth:`prompt` sees to it). ``stop_ids`` end a generation. ``leading_space`` says that
    encoding puts a space before a text, which decoding from the start takes away again.
    """

    def __init__(
        self,
        tokens: tuple[str, ...],
        types: tuple[int, ...],
        encoder: Encoder,
        *,
        bos: int | None,
        eos: int | None,
        add_bos: bool,
        stop_ids: frozenset[int],
        leading_space: bool,
    ) -> None:
        self.bos = bos
        self.eos = eos
        self.add_bos = add_bos and bos is not None
        self.stop_ids = stop_ids
        self.leading_space = leading_space
        self._tokens = tokens
        self._types = types
        self._encoder = encoder
        self._marked = {
            token: index
            for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token
        }
        users = [token for token, index in self._marked.items() if types[index] == USER_DEFINED]
        self._every_mark = _alternatives(self._marked)
        self._user_marks = _alternatives(users)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], vocab: int = 0) -> Tokenizer:
        """Build the tokenizer that ``tokenizer.ggml.*`` describes.

        Ids behind its last token, up to ``vocab`` rows of an embedding, decode to nothing.
        Raises ``UnsupportedModel`` for a kind or pre-tokenizer that clkiln lacks, by name, and
        ``ModelError`` where the metadata is incomplete or contradicts itself.
        """
        return _Metadata(metadata, vocab).tokenizer()

    def __len__(self) -> int:
        return len(self._tokens)

    def encode(self, text: str, special: bool = True, *, continuation: bool = False) -> list[int]:
        """Token ids of ``text``, without BOS or EOS of its own.

        With ``special``, control tokens spelt out in the text (``<|im_end|>``) become those
        tokens; without, they are text. Tokens that the model's makers added as words
        (user-defined) are always recognised. Lone surrogates count as U+FFFD. ``continuation``
        says that the text goes on after a special token, where some tokenizers put no space
        before it.
        """
        text = plain_text(text)
        marks = self._every_mark if special else self._user_marks
        if marks is None:
            return self._encoder.encode(text)
        ids: list[int] = []
        # The pattern has one group: text and special tokens take turns.
        for position, part in enumerate(marks.split(text)):
            if position % 2:
                ids.append(self._marked[part])
            elif part:
                ids.extend(self._encoder.encode(part))
        return ids

    def prompt(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a whole prompt: BOS first where the model wants it, and never twice (chat
        templates often spell it out)."""
        ids = self.encode(text, special)
        if self.add_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def decode(
        self, ids: Iterable[int], skip_special: bool = True, *, continuation: bool = False
    ) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        ``continuation`` says that the ids go on after others, so that a leading space is a space.
        """
        shown = (id for id in ids if not (skip_special and self.hidden(id)))
        joined = b"".join(map(self.token_bytes, shown))
        if self.leading_space and not continuation:
            joined = joined.removeprefix(b" ")
        return joined.decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; a special token's are its name."""
        piece = self.piece(id)
        kind = self._types[id]
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            return piece.encode()
        return self._encoder.piece_bytes(piece)

    def hidden(self, id: int) -> bool:
        """Whether a token is left out of decoded text: control tokens and the unknown one."""
        self.piece(id)
        return self._types[id] in (UNKNOWN, CONTROL)

    def control_at(self, text: str, position: int) -> bool:
        """Whether a control token is spelt out in ``text`` at ``position``."""
        found = None if self._every_mark is None else self._every_mark.match(text, position)
        return found is not None and self.hidden(self._marked[found.group()])

    def piece(self, id: int) -> str:
        """The vocabulary's own spelling of a token; ``UsageError`` for an id out of range."""
        if not 0 <= id < len(self._tokens):
            raise UsageError(f"token id {id} is not in a vocabulary of {len(self._tokens)}")
        return self._tokens[id]

    @property
    def bos_text(self) -> str:
        """BOS spelt out, as chat templates want it; empty if there is none."""
        return "" if self.bos is None else self._tokens[self.bos]

    @property
    def eos_text(self) -> str:
        return "" if self.eos is None else self._tokens[self.eos]


def plain_text(text: str) -> str:
    """``text`` as it can be encoded at all: lone surrogates count as U+FFFD."""
    return _LONE_SURROGATES.sub("\ufffd", text)


def _alternatives(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that splits at any of ``tokens``, at the longest where several match."""
    longest_first = sorted(tokens, key=len, reverse=True)
    if not longest_first:
        return None
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


class _Metadata:
    """Typed access to ``tokenizer.ggml.*``."""

    def __init__(self, metadata: Mapping[str, Any], vocab: int) -> None:
        self.metadata, self.vocab = metadata, vocab
        tokens = self.get("tokens")
        if not isinstance(tokens, tuple) or not tokens:
            raise ModelError("the model has no vocabulary (tokenizer.ggml.tokens)")
        self.tokens: tuple[str, ...] = tokens

    def tokenizer(self) -> Tokenizer:
        kind = self.get("model")
        if kind == "gpt2":
            return self.byte_level()
        if kind == "llama":
            return self.sentence_piece()
        raise UnsupportedModel(f"unsupported tokenizer {kind!r}; clkiln has gpt2 and llama")

    def byte_level(self) -> Tokenizer:
        merges = self.get("merges")
        if not isinstance(merges, tuple):
            raise ModelError("the model has no merges (tokenizer.ggml.merges)")
        encoder = ByteLevelBPE(self.tokens, merges, self.text("pre", "default"))
        return self.build(encoder, self.types(), add_bos=encoder.pre.add_bos)

    def sentence_piece(self) -> Tokenizer:
        types = self.types()
        prefix = self.flag("add_space_prefix", True)
        unknown = self.id("unknown_token_id", 0)
        encoder = SentencePieceBPE(
            self.tokens,
            self.scores(),
            types,
            unknown=0 if unknown is None else unknown,
            add_space_prefix=prefix,
        )
        # SentencePiece models have <s> and </s> at 1 and 2 where nothing is said.
        return self.build(encoder, types, bos=1, eos=2, add_bos=True, leading_space=prefix)

    def build(
        self,
        encoder: Encoder,
        types: tuple[int, ...],
        *,
        bos: int | None = None,
        eos: int | None = None,
        add_bos: bool = False,
        leading_space: bool = False,
    ) -> Tokenizer:
        eos = self.id("eos_token_id", eos)
        padding = max(0, self.vocab - len(self.tokens))
        return Tokenizer(
            self.tokens + ("",) * padding,
            types + (UNUSED,) * padding,
            encoder,
            bos=self.id("bos_token_id", bos),
            eos=eos,
            add_bos=self.flag("add_bos_token", add_bos),
            stop_ids=frozenset(self.stop_ids(eos, types)),
            leading_space=leading_space,
        )

    def stop_ids(self, eos: int | None, types: tuple[int, ...]) -> Iterator[int]:
        for id in (eos, self.id("eot_token_id", None), self.id("eom_token_id", None)):
            if id is not None:
                yield id
        for index, (token, kind) in enumerate(zip(self.tokens, types, strict=True)):
            # A plain token may be spelt like one of them: "</s>" is also a tag of HTML.
            if kind in (CONTROL, USER_DEFINED) and token in END_NAMES:
                yield index

    # -- values ------------------------------------------------------------------------------

    def get(self, name: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}")

    def text(self, name: str, default: str) -> str:
        value = self.get(name)
        return value if isinstance(value, str) else default

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        return value if isinstance(value, bool) else default

    def id(self, name: str, default: int | None) -> int | None:
        """A token id; a default that the vocabulary does not reach counts as none."""
        value = self.get(name)
        if value is None:
            return default if default is not None and default < len(self.tokens) else None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise ModelError(
                f"tokenizer.ggml.{name} is {value!r}, not in a vocabulary of {len(self.tokens)}"
            )
        return value

    def numbers(self, name: str) -> np.ndarray | None:
        """An array of numbers as long as the vocabulary, or None where there is none."""
        values = self.get(name)
        if values is None:
            return None
        if not isinstance(values, np.ndarray) or len(values) != len(self.tokens):
            raise ModelError(f"tokenizer.ggml.{name} does not have one number for each token")
        return values

    def types(self) -> tuple[int, ...]:
        values = self.numbers("token_type")
        if values is not None:
            return tuple(values.tolist())
        return tuple(NORMAL if byte_of(token) is None else BYTE for token in self.tokens)

    def scores(self) -> list[float]:
        values = self.numbers("scores")
        if values is None or not np.isfinite(values).all():
            raise ModelError("the model's vocabulary has no scores (tokenizer.ggml.scores)")
        scores: list[float] = values.tolist()
        return scores
