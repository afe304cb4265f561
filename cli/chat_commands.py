"""The commands of a chat: what begins with a slash."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from ..errors import UsageError
from .common import note
from .conversation import Conversation

HELP = {
    "/help": "list these commands",
    "/reset": "begin a new conversation, with the same system message",
    "/system [TEXT]": "show the system message, or set it; - takes it away",
    "/save [--force] FILE": "write the conversation as JSON; chat --load reads it",
    "/quit": "leave, as Ctrl-D does",
    "//...": "a message that begins with a slash",
    "...\\": "a line that goes on in the next",
    '"""...': 'a message of several lines, to the next """',
}
#: What people know from elsewhere.
SAME = {"?": "help", "clear": "reset", "new": "reset", "exit": "quit", "bye": "quit", "q": "quit"}


def is_command(text: str) -> bool:
    return text.startswith("/") and not text.startswith("//")


class Commands:
    """Follows commands on a conversation. ``check`` raises if the model can't go on with it."""

    def __init__(self, conversation: Conversation, check: Callable[[], None]) -> None:
        self._conversation, self._check = conversation, check

    def follow(self, text: str) -> bool:
        """False if the command was to leave. Raises ``UsageError`` for one that there is not."""
        word, _, argument = text[1:].partition(" ")
        name, argument = SAME.get(word, word), argument.strip()
        if name == "quit":
            return False
        if name == "help":
            for usage, meaning in HELP.items():
                note(f"  {usage:<22}{meaning}")
        elif name == "reset":
            self._conversation.reset()
            note("(new conversation)")
        elif name == "system":
            self._system(argument)
        elif name == "save":
            self._save(argument)
        else:
            raise UsageError(_unknown(word))
        return True

    def _system(self, text: str) -> None:
        before = self._conversation.system
        if not text:
            note("(no system message)" if before is None else f"system message: {before}")
            return
        self._conversation.set_system(None if text == "-" else text)
        try:
            self._check()
        except BaseException:
            self._conversation.set_system(before)
            raise
        note("(no system message any more)" if text == "-" else "(system message set)")

    def _save(self, argument: str) -> None:
        force = argument.startswith("--force ")
        name = argument.removeprefix("--force ").strip()
        if not name or name == "--force":
            raise UsageError("which file? /save FILE")
        count = len(self._conversation.messages)
        replaced = self._conversation.save(Path(name).expanduser(), force=force)
        how = ", in place of what was there" if replaced else ""
        note(f"(saved {count} messages to {name}{how})")


def _unknown(word: str) -> str:
    known = [usage.split()[0][1:] for usage in HELP if usage[1:2].isalpha()]
    close = difflib.get_close_matches(word, [*known, *SAME], n=1)
    hint = f", did you mean /{close[0]}?" if close else ""
    return f"unknown command /{word}{hint} (/help lists them; // begins a message with a slash)"
