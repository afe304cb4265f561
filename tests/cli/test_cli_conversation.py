"""Conversations in files, and messages as they are typed."""

from __future__ import annotations

import io
import json
import random
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from clkiln.cli.conversation import Conversation
from clkiln.cli.prompting import HISTORY_LINES, History, Prompter
from clkiln.errors import ClkilnError, UsageError


def some(system: str | None = None) -> Conversation:
    conversation = Conversation(system)
    conversation.add("Who are you?", "A kiln.\n\n\tHot. Ünïcödé 🔥 \x00")
    return conversation


# -- messages --------------------------------------------------------------------------------------


def test_the_system_message_is_the_first_one() -> None:
    conversation = some()
    assert conversation.system is None
    conversation.set_system("Be brief.")
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]
    conversation.set_system("Be briefer.")
    assert conversation.system == "Be briefer." and len(conversation.messages) == 3
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be briefer."}]
    assert not conversation.began
    conversation.set_system(None)
    assert conversation.messages == []


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_what_was_saved_is_loaded(tmp_path: Path, system: str | None) -> None:
    saved, path = some(system), tmp_path / "talk.json"
    assert saved.save(path) is False
    assert json.loads(path.read_text(encoding="utf-8")) == saved.messages
    assert Conversation.load(path).messages == saved.messages
    path.write_text(json.dumps({"model": "x", "messages": saved.messages}), encoding="utf-8-sig")
    assert Conversation.load(path).messages == saved.messages
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_is_no_unicode_is_kept(tmp_path: Path) -> None:
    """What a C locale makes of odd bytes on standard input."""
    conversation, path = Conversation(), tmp_path / "talk.json"
    conversation.add("\udcff?", "!")
    conversation.save(path)
    assert Conversation.load(path).messages == conversation.messages


def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "diary.json"
    path.write_text("Dear diary")
    with pytest.raises(UsageError, match=r"exists: /save --force .* replaces it"):
        some().save(path)
    assert path.read_text() == "Dear diary"
    assert some().save(path, force=True) is True
    loaded = Conversation.load(path)
    loaded.add("And now?", "Nothing.")
    assert loaded.save(path) is True, "it came from there"
    assert len(Conversation.load(path).messages) == 4
    fresh, other = some(), tmp_path / "other.json"
    assert [fresh.save(other), fresh.save(other)] == [False, True]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("[]")
    link = tmp_path / "link.json"
    link.symlink_to("real.json")
    some().save(link, force=True)
    assert link.is_symlink()
    assert Conversation.load(tmp_path / "real.json").messages == some().messages


def test_what_cannot_be_saved_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk.json"
    some().save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ClkilnError, match="No space left on device"):
        some().save(path, force=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    for nowhere, problem in (
        (tmp_path / "no" / "folder.json", "No such file"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path, "is no file"),
        (Path("/dev/null"), "is no file"),
        (Path("a\0b"), "no file can be called"),
    ):
        with pytest.raises(ClkilnError, match=problem):
            some().save(nowhere, force=True)


@pytest.mark.parametrize(
    "content",
    [
        "", "Dear diary", "{}", "3", '{"messages": {}}', '["hello"]', '[{"role": "user"}]',
        '[{"role": "tool", "content": "x"}]', '[{"role": "user", "content": ["x"]}]',
        '[{"role": ["user"], "content": "x"}]', '[{"role": "user", "content": null}]',
        '[{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]', "[" * 99999,
    ],
)  # fmt: skip
def test_files_that_hold_no_conversation(tmp_path: Path, content: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"talk\.json"):
        Conversation.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"talk\.json"):
        Conversation.load(path)


# -- messages as they are typed --------------------------------------------------------------------


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    prompter, messages = Prompter(), list[str]()
    while (message := prompter.read()) is not None:
        messages.append(message)
    return messages


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", []),
        ("one\ntwo", ["one", "two"]),
        ("one\n\ntwo\n", ["one", "", "two"]),
        ("one\\\ntwo\\\nthree\nfour\n", ["one\ntwo\nthree", "four"]),
        ("a \\\\\nb\n", ["a \\\\", "b"]),
        ("a \\\\\\\nb\n", ["a \\\\\nb"]),
        ("one\\\n", ["one"]),
        ('"""one\n\n two \nthree"""\nfour\n', ["one\n\n two \nthree", "four"]),
        ('"""\none\n"""\nfour\n', ["one", "four"]),
        ('  """one"""  \ntwo\n', ["one", "two"]),
        ('"""one\ntwo\\\n', ["one\ntwo\\"]),
        ('say """ to it\n', ['say """ to it']),
    ],
)
def test_messages_of_several_lines(
    monkeypatch: pytest.MonkeyPatch, text: str, messages: list[str]
) -> None:
    assert typed(monkeypatch, text) == messages


def test_lines_are_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random text: whatever does not ask for more is a message to itself, unchanged."""
    chance = random.Random(7)
    for _ in range(50):
        lines = ["".join(chance.choices('ab \\/"ü🔥\t', k=chance.randrange(12))) for _ in range(9)]
        lines = [f"{line}." for line in lines if not line.lstrip().startswith('"""')]
        assert typed(monkeypatch, "\n".join(lines)) == lines


# -- what was typed before -------------------------------------------------------------------------

readline = pytest.importorskip("readline")


@pytest.fixture
def history(tmp_path: Path) -> Any:
    """A history file; readline's own memory is put back."""
    yield tmp_path / "folder" / "history"
    readline.clear_history()


def type_line(history: History, line: str) -> None:
    readline.add_history(line)
    history.keep()


def remembered(path: Path) -> list[str]:
    History(path)
    return [readline.get_history_item(i + 1) for i in range(readline.get_current_history_length())]


def test_lines_are_remembered(history: Path) -> None:
    first = History(history)
    for line in ("one", "two", "ü 🔥"):
        type_line(first, line)
    first.keep()
    assert remembered(history) == ["one", "two", "ü 🔥"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_history_that_others_could_read_is_closed_to_them(history: Path) -> None:
    history.parent.mkdir()
    history.write_text("secret\n")
    history.chmod(0o644)
    assert remembered(history) == ["secret"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_two_chats_side_by_side_keep_both(history: Path) -> None:
    first = History(history)
    type_line(first, "one")
    with open(history, "a") as other:
        other.write("from elsewhere\n")
    type_line(first, "two")
    assert remembered(history) == ["one", "from elsewhere", "two"]


def test_a_long_history_is_cut(history: Path) -> None:
    history.parent.mkdir()
    lines = [f"line {i}" for i in range(2 * HISTORY_LINES + 1)]
    history.write_text("\n".join(lines) + "\n")
    History(history)
    assert remembered(history) == lines[-HISTORY_LINES:]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_folder_that_takes_no_files(history: Path) -> None:
    """The kernel's own, which refuses them even to root; a read-only one refuses the same way."""
    nowhere = Path("/proc") / history.name
    type_line(History(nowhere), "one")
    assert not nowhere.exists()
    assert remembered(nowhere) == []


def test_a_history_that_is_a_folder(history: Path) -> None:
    history.mkdir(parents=True)
    type_line(History(history), "one")
    assert list(history.iterdir()) == []
