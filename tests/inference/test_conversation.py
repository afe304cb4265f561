"""Token ids of a conversation: what was generated is kept, and nothing that the text denies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clk_models import BYTE_TOKENS, CHATML, SPECIAL, as_read, vocabulary_keys
from clkiln.inference.chat import render
from clkiln.inference.completion import Completion
from clkiln.inference.conversation import Transcript
from clkiln.inference.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_gguf(as_read(vocabulary_keys(900)))
END = SPECIAL.index("<|im_end|>")
#: Anything but control tokens: parts of characters, and letters that merges would have joined.
PLAIN = st.integers(len(SPECIAL), len(TOKENIZER) - 1)
#: Reasoning is shown in the last answer alone, as in templates of reasoning models.
FORGETFUL = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")


def text_of(messages: list[dict[str, str]], template: str = CHATML) -> str:
    return render(messages, template, bos="", eos="")


def answer(prompt: list[int], ids: list[int], *, ended: bool, cut: int | None = None) -> Completion:
    """A finished completion; ``cut`` characters of its text are shown, as before a stop string."""
    text = TOKENIZER.decode(ids)
    return Completion(text[:cut], [*ids, *([END] if ended else [])], prompt)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@given(st.lists(st.tuples(st.text(max_size=9), st.lists(PLAIN, max_size=9), st.booleans())))
def test_a_conversation_keeps_all_its_ids(turns: list[tuple[str, list[int], bool]]) -> None:
    transcript, messages, held = Transcript(TOKENIZER), [], []
    for asked, generated, ended in turns:
        if any(name in asked for name in SPECIAL):
            continue
        messages.append(user(asked))
        ids = transcript.encode(text_of(messages))
        assert ids[: len(held)] == held
        # What is new is encoded as it would be in the whole text: it says the same.
        assert (
            TOKENIZER.decode(ids[len(held) :], False)
            == text_of(messages)[len(TOKENIZER.decode(held, False)) :]
        )
        completion = answer(ids, generated, ended=ended)
        transcript.answered(completion)
        messages.append(assistant(completion.text))
        held = ids + completion.token_ids


@given(st.lists(PLAIN, max_size=9), st.text(max_size=5))
def test_without_an_answer_it_is_the_whole_encoding(generated: list[int], asked: str) -> None:
    transcript = Transcript(TOKENIZER)
    for text in (text_of([user(asked)]), text_of([user("x")]), text_of([user(asked)])):
        assert transcript.encode(text) == TOKENIZER.prompt(text)
        transcript.answered(answer([1, 2, 3], generated, ended=True))  # to something else


#: Three letters that the encoder would have merged.
LETTERS = [len(SPECIAL) + byte for byte in b"tea"]


def conversation(
    template: str = CHATML, ended: bool = True, generated: list[int] | None = None
) -> tuple[Transcript, list[dict[str, str]], Completion]:
    """One question and its answer."""
    transcript, messages = Transcript(TOKENIZER), [user("Hi")]
    ids = transcript.encode(text_of(messages, template))
    completion = answer(ids, LETTERS if generated is None else generated, ended=ended)
    transcript.answered(completion)
    return transcript, [*messages, assistant(completion.text)], completion


def test_the_answers_own_ids_differ_from_the_encoding() -> None:
    transcript, messages, completion = conversation()
    text = text_of([*messages, user("And?")])
    ids = transcript.encode(text)
    held = [*completion.prompt_token_ids, *completion.token_ids]
    assert ids[: len(held)] == held
    assert ids != TOKENIZER.prompt(text)
    assert TOKENIZER.decode(ids, False) == text


@pytest.mark.parametrize("change", ["edited", "trimmed", "question", "system"])
def test_a_changed_history_is_encoded_anew(change: str) -> None:
    transcript, messages, completion = conversation()
    messages = [*messages, user("And?")]
    if change == "edited":
        messages[1] = assistant("no")
    elif change == "trimmed":
        messages[1] = assistant(completion.text[:-1])
    elif change == "question":
        messages[0] = user("Ho")
    else:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    text = text_of(messages)
    assert transcript.encode(text) == TOKENIZER.prompt(text)


def test_a_template_that_drops_reasoning_is_obeyed() -> None:
    thought = [*LETTERS, *TOKENIZER.encode("</think>"), *LETTERS]
    transcript, messages, completion = conversation(FORGETFUL, generated=thought)
    assert "</think>" in completion.text
    text = text_of([*messages, user("And?")], FORGETFUL)
    ids = transcript.encode(text)
    assert "</think>" not in text
    assert ids == TOKENIZER.prompt(text)


def test_an_answer_can_be_asked_for_again() -> None:
    transcript, messages, completion = conversation()
    for _ in range(2):
        assert transcript.encode(text_of(messages[:1])) == completion.prompt_token_ids
    longer = [*messages, user("And?"), assistant("So."), user("Then?")]
    text = text_of(longer)
    # The answer that was dropped by asking again is not known any more.
    assert transcript.encode(text) == TOKENIZER.prompt(text)


def test_earlier_turns_are_kept_when_a_later_one_changes() -> None:
    transcript, messages, first = conversation()
    ids = transcript.encode(text_of([*messages, user("And?")]))
    transcript.answered(answer(ids, LETTERS, ended=True))
    other = transcript.encode(text_of([*messages, user("And?"), assistant("x"), user("So?")]))
    held = [*first.prompt_token_ids, *first.token_ids]
    assert other[: len(held)] == held
    assert len(other) > len(ids)


def test_an_answer_cut_before_a_stop_string() -> None:
    """Tokens are kept up to the cut; where it goes through a token, the text is encoded anew."""
    transcript, messages = Transcript(TOKENIZER), [user("Hi")]
    word = max(range(len(TOKENIZER)), key=lambda id: len(TOKENIZER.piece(id) * (id > BYTE_TOKENS)))
    for generated, cut, kept in ((LETTERS, 2, 2), (LETTERS, 3, 3), ([*LETTERS, word], 4, 0)):
        ids = transcript.encode(text_of(messages))
        completion = answer(ids, generated, ended=False, cut=cut)
        transcript.answered(completion)
        text = text_of([*messages, assistant(completion.text), user("x")])
        found = transcript.encode(text)
        assert found[: len(ids) + kept] == [*ids, *LETTERS[:kept]]
        assert TOKENIZER.decode(found, False) == text
        assert (found == TOKENIZER.prompt(text)) == (kept == 0)


def test_an_unfinished_answer_is_kept_as_far_as_it_is_shown() -> None:
    """The consumer stopped while a part of a character was held back."""
    transcript, messages = Transcript(TOKENIZER), [user("Hi")]
    ids = transcript.encode(text_of(messages))
    half = len(SPECIAL) + "é".encode()[0]
    transcript.answered(Completion("te", [*LETTERS[:2], half], ids))
    text = text_of([*messages, assistant("te"), user("x")])
    found = transcript.encode(text)
    assert found[: len(ids) + 2] == [*ids, *LETTERS[:2]]
    assert TOKENIZER.decode(found, False) == text


def test_control_tokens_inside_an_answer_are_not_history() -> None:
    inside = [LETTERS[0], SPECIAL.index("<|endoftext|>"), LETTERS[1]]
    transcript, messages, _ = conversation(generated=inside)
    text = text_of([*messages, user("And?")])
    assert transcript.encode(text) == TOKENIZER.prompt(text)


def test_an_answer_that_spells_a_control_token_stays_text() -> None:
    spelt = TOKENIZER.encode("<|im_end|>", special=False)
    transcript, messages, completion = conversation(generated=spelt)
    assert completion.text == "<|im_end|>"
    ids = transcript.encode(text_of([*messages, user("And?")]))
    held = [*completion.prompt_token_ids, *completion.token_ids]
    assert ids[: len(held)] == held
    assert END not in spelt
