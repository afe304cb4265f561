"""SentencePiece BPE, the tokenizer that GGUF calls ``llama``: pieces with scores, bytes as a last
resort.

The algorithm is SentencePiece's own: start from single characters, join the neighbours whose
joint piece has the highest score (the leftmost of equals) until no join is a piece, take unused
pieces apart again, and spell what is no piece in bytes. Nothing is cut into words first, so a
piece may hold several words or spaces.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush

SPACE = "\u2581"
_NORMAL, _UNUSED, _BYTE, _USER_DEFINED = 1, 5, 6, 4


def byte_of(piece: str) -> int | None:
    """The byte that a piece like ``<0x0A>`` spells; None for any other piece."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return int(piece[3:5], 16)
        except ValueError:
            return None
    return None


class SentencePieceBPE:
    """Encodes text without special tokens; immutable, so thread-safe.

    ``scores`` and ``types`` (GGUF token types) run along ``tokens``. ``unknown`` is the id of what
    can be spelt neither in pieces nor in bytes. With ``add_space_prefix`` a text starts with a
    space that is not there, so that its first word is the piece it is inside a sentence.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        scores: Sequence[float],
        types: Sequence[int],
        *,
        unknown: int,
        add_space_prefix: bool,
    ) -> None:
        # Control tokens and byte pieces never come out of joining characters.
        self._pieces = {
            token: (-score, index)
            for index, (token, score, kind) in enumerate(zip(tokens, scores, types, strict=True))
            if kind in (_NORMAL, _UNUSED, _USER_DEFINED)
        }
        self._unused = {index for index, kind in enumerate(types) if kind == _UNUSED}
        self._bytes = {
            byte: index
            for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == _BYTE and (byte := byte_of(token)) is not None
        }
        self._unknown = unknown
        self._add_space_prefix = add_space_prefix

    def encode(self, text: str) -> list[int]:
        if not text:
            return []
        if self._add_space_prefix:
            text = " " + text
        return _Merger(text.replace(" ", SPACE), self._pieces, self._unused).ids(self._spell)

    def piece_bytes(self, piece: str) -> bytes:
        """The bytes that the token ``piece`` stands for."""
        byte = byte_of(piece)
        return piece.replace(SPACE, " ").encode() if byte is None else bytes([byte])

    def _spell(self, character: str) -> Iterator[int]:
        spelled = character.encode()
        if any(byte not in self._bytes for byte in spelled):
            yield self._unknown
            return
        for byte in spelled:
            yield self._bytes[byte]


class _Merger:
    """One text being joined. A symbol is named by its start; ``end`` 0 marks one that was joined
    to its left neighbour."""

    def __init__(
        self, text: str, pieces: Mapping[str, tuple[float, int]], unused: Container[int]
    ) -> None:
        self.text = text
        self.pieces = pieces
        self.unused = unused
        self.end = list(range(1, len(text) + 1))
        self.before = list(range(-1, len(text) - 1))
        self.queue: list[tuple[float, int, int, int]] = []
        # Where an unused piece was joined, by its text: to take it apart the same way.
        self.joints: dict[str, int] = {}

    def ids(self, spell: Callable[[str], Iterable[int]]) -> list[int]:
        self.join_all()
        found: list[int] = []
        start = 0
        while start < len(self.text):
            self.emit(self.text[start : self.end[start]], spell, found)
            start = self.end[start]
        return found

    def join_all(self) -> None:
        for start in range(1, len(self.text)):
            self.offer(start - 1, start)
        while self.queue:
            _, left, right, end = heappop(self.queue)
            # Either side may have been joined to something else since.
            if self.end[left] != right or self.end[right] != end:
                continue
            self.end[left], self.end[right] = end, 0
            if end < len(self.text):
                self.before[end] = left
                self.offer(left, end)
            if left:
                self.offer(self.before[left], left)

    def offer(self, left: int, right: int) -> None:
        """Queue the join of two neighbours if it is a piece: best score first, then leftmost."""
        end = self.end[right]
        piece = self.text[left:end]
        known = self.pieces.get(piece)
        if known is None:
            return
        rank, index = known
        heappush(self.queue, (rank, left, right, end))
        if index in self.unused:
            self.joints[piece] = right - left

    def emit(self, piece: str, spell: Callable[[str], Iterable[int]], found: list[int]) -> None:
        known = self.pieces.get(piece)
        if known is None:
            found.extend(spell(piece))
        elif known[1] in self.unused and piece in self.joints:
            joint = self.joints[piece]
            self.emit(piece[:joint], spell, found)
            self.emit(piece[joint:], spell, found)
        else:
            found.append(known[1])
