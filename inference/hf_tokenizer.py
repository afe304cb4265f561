"""The tokenizer of a model directory: ``tokenizer.json``, run by the ``tokenizers`` library.

The library encodes whole texts, special tokens included, as its users know it. Decoding is ours,
bytes first, so that a stream can be decoded token by token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import ModelError, UnsupportedModel
from .bpe import bytes_of_piece
from .files import parse_object, read_bytes
from .hf import MAX_TOKENIZER, HFDirectory
from .spm import SPACE, byte_of
from .tokenizer import CONTROL, END_NAMES, NORMAL, UNUSED, USER_DEFINED, Tokenizer, plain_text

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Library

#: Steps of decoders that turn pieces into text as SentencePiece does: ``▁`` is a space.
_SPACE_STEPS = frozenset(("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"))


def read_tokenizer(directory: HFDirectory, vocab: int) -> Tokenizer:
    """The directory's tokenizer for a model with ``vocab`` rows in its embedding.

    Ids behind the last token decode to nothing; they pad the embedding. Raises ``ModelError`` for a
    file that is missing, damaged or has more tokens than the model, ``UnsupportedModel`` for a kind
    of tokenizer that clkiln lacks.
    """
    return _Reader(directory, vocab).tokenizer()


@dataclass(frozen=True)
class LibraryEncoder:
    """Encodes plain text; the pieces are byte-level characters, or ``▁`` for spaces and ``<0x0A>``
    for bytes. ``strips``: the beginning of a decoded text loses a space."""

    library: Library
    byte_level: bool
    strips: bool

    def encode(self, text: str) -> list[int]:
        return list(self.library.encode(text, add_special_tokens=False).ids)

    def piece_bytes(self, piece: str) -> bytes:
        if self.byte_level:
            return bytes_of_piece(piece)
        byte = byte_of(piece)
        return piece.replace(SPACE, " ").encode() if byte is None else bytes([byte])


class LibraryTokenizer(Tokenizer):
    """Encodes with the library; immutable, and safe for many threads, as the library's calls are.

    ``anchor`` is the text of a special token: what follows it is not the beginning of a text.
    """

    def __init__(self, encoder: LibraryEncoder, anchor: str, **parts: Any) -> None:
        super().__init__(encoder=encoder, leading_space=encoder.strips, **parts)
        self._library, self._anchor = encoder, anchor

    def encode(self, text: str, special: bool = True, *, continuation: bool = False) -> list[int]:
        text = plain_text(text)
        if continuation and special and self.leading_space and self._anchor:
            return self._library.encode(self._anchor + text)[1:]
        return (self._library if special else self._unmarked).encode(text)

    @cached_property
    def _unmarked(self) -> LibraryEncoder:
        """Takes control tokens for plain text. Rarely wanted: a copy of everything."""
        library = self._library.library
        copied = type(library).from_str(library.to_str())
        copied.encode_special_tokens = True
        return replace(self._library, library=copied)


class _Reader:
    def __init__(self, directory: HFDirectory, vocab: int) -> None:
        self.directory, self.vocab = directory, vocab
        self.path = directory.path / "tokenizer.json"

    def wrong(self, what: str) -> NoReturn:
        raise ModelError(f"{self.path} is inconsistent: {what}")

    def unsupported(self, what: str) -> NoReturn:
        raise UnsupportedModel(f"{self.path}: unsupported {what}")

    def tokenizer(self) -> Tokenizer:
        library = self.library()
        added = library.get_added_tokens_decoder()
        tokens, types = self.vocabulary(library, added)
        encoder = self.encoder(library)
        ids = {token: id for id, token in enumerate(tokens) if token}
        first = self.first_token(library)
        bos = ids.get(self.named("bos_token")) if first is None else first
        eos = ids.get(self.named("eos_token"))
        if eos is None:
            eos = next(iter(self.stated_ends()), None)
        return LibraryTokenizer(
            encoder,
            next((a.content for a in added.values() if a.special and not a.rstrip), ""),
            tokens=tokens,
            types=types,
            bos=bos,
            eos=eos,
            add_bos=first is not None,
            stop_ids=frozenset(self.stop_ids(eos, tokens, types)),
        )

    def library(self) -> Library:
        # Imported here: who only lists devices or reads a report does not wait for it.
        from tokenizers import Tokenizer as Library

        data = read_bytes(self.path, MAX_TOKENIZER)
        if data is None:
            raise ModelError(
                f"{self.directory.path} has no tokenizer.json; take a model that has one, or let "
                "the transformers library write it (AutoTokenizer, save_pretrained)"
            )
        found = self.parse(Library, data)
        if max(found.get_added_tokens_decoder(), default=0) >= self.vocab:
            # Tokens that somebody added for training, and the model never got rows for.
            stated = parse_object(data, str(self.path))
            stated["added_tokens"] = [t for t in stated["added_tokens"] if t["id"] < self.vocab]
            found = self.parse(Library, json.dumps(stated).encode())
        # What trained with a length or in batches says nothing about a prompt.
        found.no_truncation()
        found.no_padding()
        return found

    def parse(self, library: type[Library], data: bytes) -> Library:
        try:
            return library.from_buffer(data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # The library raises ValueError, and its panics are no Exception at all.
            reason = " ".join(str(error).split())
            raise ModelError(f"{self.path} is damaged: {reason}; download it again") from None

    def vocabulary(
        self, library: Library, added: dict[int, AddedToken]
    ) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Tokens and their types, by id, up to the rows of the embedding."""
        tokens, types = [""] * self.vocab, [UNUSED] * self.vocab
        for token, id in library.get_vocab(with_added_tokens=True).items():
            if id >= self.vocab:
                self.wrong(f"token {token!r} has the id {id}, the embedding {self.vocab} rows")
            if tokens[id]:
                self.wrong(f"tokens {tokens[id]!r} and {token!r} have the id {id}")
            tokens[id], types[id] = token, NORMAL
        for id, token_added in added.items():
            types[id] = CONTROL if token_added.special else USER_DEFINED
        return tuple(tokens), tuple(types)

    def encoder(self, library: Library) -> LibraryEncoder:
        decoder: Any = library.decoder
        stated = {} if decoder is None else json.loads(decoder.__getstate__())
        steps = stated.get("decoders", [stated])
        kinds = [step.get("type") for step in steps]
        if kinds == ["ByteLevel"]:
            return LibraryEncoder(library, byte_level=True, strips=False)
        if not kinds or not set(kinds) <= _SPACE_STEPS:
            names = " + ".join(map(str, kinds))
            self.unsupported(f"decoder {names}; clkiln has byte-level and SentencePiece's")
        return LibraryEncoder(library, byte_level=False, strips=any(map(_strips, steps)))

    def first_token(self, library: Library) -> int | None:
        """The token that the post-processor puts before a text, if it puts one."""
        bare = library.encode("a", add_special_tokens=False).ids
        whole = library.encode("a", add_special_tokens=True).ids
        places = [n for n in range(len(whole)) if whole[n : n + len(bare)] == bare]
        if not bare or not places or places[0] > 1:
            self.unsupported(f"post-processor: it makes {whole} of the tokens {bare}")
        # What it puts behind a text would end it before an answer begins.
        return whole[0] if places[0] else None

    # -- what ends an answer -------------------------------------------------------------------

    def named(self, key: str) -> str:
        """A special token of ``tokenizer_config.json``, which older files spell as an object."""
        value = self.directory.tokenizer_config.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) else ""

    def stated_ends(self) -> Iterator[int]:
        """``eos_token_id``, a number or several, of the configurations."""
        for values in (self.directory.generation, self.directory.config):
            stated = values.get("eos_token_id")
            for id in stated if isinstance(stated, list) else [stated]:
                if id is None:
                    continue
                if type(id) is not int or not 0 <= id < self.vocab:
                    raise ModelError(
                        f"{self.directory.path} is inconsistent: eos_token_id {id!r} is not in a "
                        f"vocabulary of {self.vocab}"
                    )
                yield id

    def stop_ids(
        self, eos: int | None, tokens: Iterable[str], types: tuple[int, ...]
    ) -> Iterator[int]:
        if eos is not None:
            yield eos
        yield from self.stated_ends()
        for id, token in enumerate(tokens):
            # A plain token may be spelt like one of them: "</s>" is also a tag of HTML.
            if token in END_NAMES and types[id] in (CONTROL, USER_DEFINED):
                yield id


def _strips(step: dict[str, Any]) -> bool:
    if step.get("type") == "Metaspace":
        return step.get("prepend_scheme") != "never"
    return step.get("type") == "Strip" and step.get("content") == " " and bool(step.get("start"))
