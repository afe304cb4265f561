"""Streams of tokens: whole characters only, nothing lost, nothing held for long."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_models import BYTE_TOKENS, SPECIAL, as_read, vocabulary_keys
from clkiln.errors import UsageError
from clkiln.inference.detokenize import StopStrings, StreamDecoder
from clkiln.inference.tokenizer import Tokenizer

SIZE = 520
BYTE_LEVEL = Tokenizer.from_gguf(as_read(vocabulary_keys(SIZE)))
FIRST_BYTE = len(SPECIAL)
SENTENCE_PIECE = Tokenizer.from_gguf(
    {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": (
            *("<unk>", "<s>", "</s>"),
            *(f"<0x{byte:02X}>" for byte in range(256)),
            *("▁", "▁a", "é"),
        ),
        "tokenizer.ggml.scores": np.zeros(262, np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * 3),
    }
)

# Bytes as they come in text, cut anywhere, between bytes as they never come.
UTF8 = st.text(max_size=6).map(lambda text: [FIRST_BYTE + byte for byte in text.encode()])
ANY = st.lists(st.integers(0, SIZE - 1), max_size=5)
IDS = st.lists(UTF8 | ANY, max_size=8).map(lambda parts: list(chain(*parts)))
LEADS = st.lists(st.integers(0x80, 0xFF).map(lambda byte: FIRST_BYTE + byte), max_size=12)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCE_PIECE], ids=["bpe", "spm"])
@settings(max_examples=200, deadline=None)
@given(ids=IDS | LEADS, skip=st.booleans(), continuation=st.booleans())
def test_the_pushes_are_the_whole_text(
    tokenizer: Tokenizer, ids: list[int], skip: bool, continuation: bool
) -> None:
    ids = [id % len(tokenizer) for id in ids]
    stream = StreamDecoder(tokenizer, skip_special=skip, continuation=continuation)
    pushed = "".join(map(stream.push, ids)) + stream.flush()
    assert pushed == tokenizer.decode(ids, skip, continuation=continuation)


@settings(max_examples=200, deadline=None)
@given(ids=IDS | LEADS)
def test_never_more_than_three_bytes_are_held(ids: list[int]) -> None:
    stream = StreamDecoder(BYTE_LEVEL, skip_special=False)
    shown = ""
    for count, id in enumerate(ids, 1):
        shown += stream.push(id)
        data = b"".join(map(BYTE_LEVEL.token_bytes, ids[:count]))
        # What is shown stays: it is what a decoder of everything so far starts with ...
        assert data.decode("utf-8", "replace").startswith(shown)
        # ... and what is not shown yet is the start of one character.
        held = [n for n in range(4) if data[: len(data) - n].decode("utf-8", "replace") == shown]
        assert held


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=20))
def test_characters_appear_with_their_last_byte(text: str) -> None:
    stream = StreamDecoder(BYTE_LEVEL)
    for character in text:
        *first, last = character.encode()
        assert all(stream.push(FIRST_BYTE + byte) == "" for byte in first)
        assert stream.push(FIRST_BYTE + last) == character
    assert stream.flush() == ""


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    stream = StreamDecoder(BYTE_LEVEL)
    assert [stream.push(FIRST_BYTE + byte) for byte in "🎉".encode()[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_tokens_inside_a_character_do_not_break_it() -> None:
    stream = StreamDecoder(BYTE_LEVEL)
    first, second = "é".encode()
    pushed = [stream.push(id) for id in (FIRST_BYTE + first, 1, FIRST_BYTE + second)]
    assert pushed == ["", "", "é"]
    assert BYTE_TOKENS + FIRST_BYTE < SIZE


# -- stop strings ----------------------------------------------------------------------------------

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """Told plainly: read a character after another until a stop string is complete."""
    for end in range(len(text) + 1):
        found = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: min(found)], True
    return text, False


@settings(max_examples=300)
@given(pieces=st.lists(LETTERS, max_size=6), stops=STOPS)
def test_stop_strings_cut_wherever_pieces_end(pieces: list[str], stops: list[str]) -> None:
    found = StopStrings(stops)
    shown = ""
    expected, stopped = cut("".join(pieces), stops)
    for piece in pieces:
        shown += found.push(piece)
        assert expected.startswith(shown)
    assert found.found == stopped
    # No more is held back than what may become a stop string.
    held = expected[len(shown) :]
    assert stopped or not held or any(s.startswith(held) and s != held for s in stops)
    assert shown + found.flush() == expected
    assert (found.push("more") == "") == stopped


def test_one_string_is_one_stop_string() -> None:
    stops = StopStrings("END")
    assert stops.push("E END now") == "E "
    assert stops.found


@pytest.mark.parametrize("stops", [[""], ["a", ""], "", [None], [b"a"]])
def test_stop_strings_that_are_none(stops: list[str]) -> None:
    with pytest.raises(UsageError, match="stop string"):
        StopStrings(stops)
