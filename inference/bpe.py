"""Byte-level BPE, the tokenizer that GGUF calls ``gpt2``, run by the ``tokenizers`` library.

Text is cut into words by the model's own patterns, every byte of a word becomes one of 256
printable characters, and merges join those. Which patterns a model was trained with stands in
``tokenizer.ggml.pre``; wrong ones give tokens that the model never saw, so an unknown name is an
error and no guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ModelError, UnsupportedModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The patterns of the published tokenizers. Each cuts what the one before it left.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Pre:
    """What happens to text before merges: patterns that cut it, and two habits of a family.

    ``nfc``: composed to Unicode's NFC first. ``whole_words``: a word that is a token is taken
    whole, without its merges. ``add_bos``: what the file's silence on BOS means.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


_GPT2_LIKE = Pre((_GPT2,))
_QWEN2 = Pre((_WORDS % r"\p{N}",), nfc=True)
_LLAMA3 = Pre((_WORDS % r"\p{N}{1,3}",), whole_words=True, add_bos=True)
_DEFAULT = Pre((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))

#: Names in ``tokenizer.ggml.pre``. ``default`` is what converters write, and what is meant where
#: there is none, when they do not know the tokenizer.
PRE: dict[str, Pre] = {
    "default": _DEFAULT,
    "deepseek-r1-qwen": _QWEN2,
    "gpt-2": _GPT2_LIKE,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "smollm": Pre((r"\p{N}", _GPT2)),
}


def byte_characters() -> list[str]:
    """The character that stands for each byte: itself where it is printable Latin-1 and no space,
    else the next unused one from U+0100 on (the table of the GPT-2 tokenizer)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = [chr(byte) for byte in range(256)]
    for index, byte in enumerate(others):
        table[byte] = chr(0x100 + index)
    return table


_BYTES = {character: byte for byte, character in enumerate(byte_characters())}


def bytes_of_piece(piece: str) -> bytes:
    """The bytes that a token stands for."""
    try:
        return bytes([_BYTES[character] for character in piece])
    except KeyError:
        # Tokens added by hand are sometimes plain text; they mean themselves.
        return piece.encode()


class ByteLevelBPE:
    """Encodes text without special tokens; thread-safe.

    Raises ``UnsupportedModel`` for an unknown ``pre`` and ``ModelError`` for merges that do not
    fit the vocabulary.
    """

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], pre: str) -> None:
        if pre not in PRE:
            raise UnsupportedModel(
                f"unsupported pre-tokenizer {pre!r}; clkiln has {', '.join(PRE)}"
            )
        self.pre = PRE[pre]
        self._tokenizer = _build(tokens, merges, self.pre)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def piece_bytes(self, piece: str) -> bytes:
        """The bytes that the token ``piece`` stands for."""
        return bytes_of_piece(piece)


def _build(tokens: Sequence[str], merges: Sequence[str], pre: Pre) -> Tokenizer:
    # Imported here: who only lists devices or reads a report does not wait for it.
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space:
            raise ModelError(f"the model's vocabulary has a merge of one part, {merge!r}")
        pairs.append((left, right))
    try:
        model = models.BPE(vocabulary, pairs, ignore_merges=pre.whole_words)
    except Exception as error:
        # The library raises plain Exception, for a merge of tokens that do not exist for one.
        raise ModelError(f"the model's merges do not fit its vocabulary: {error}") from error
    tokenizer = Tokenizer(model)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
    return tokenizer
