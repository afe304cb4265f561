"""A conversation: its messages, kept in a file as JSON that other programs read."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import ClkilnError, UsageError

Message = dict[str, str]
ROLES = ("system", "user", "assistant")


class Conversation:
    """Messages in their order; a system message, if there is one, comes first.

    ``messages`` is a list of ``{"role": ..., "content": ...}``, as chat templates take it and as
    :meth:`save` writes it.
    """

    def __init__(self, system: str | None = None) -> None:
        self.messages: list[Message] = []
        self._own_files: set[Path] = set()
        if system is not None:
            self.set_system(system)

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.messages[0] if self.messages else None
        return first["content"] if first and first["role"] == "system" else None

    def set_system(self, text: str | None) -> None:
        """Put ``text`` in the place of the system message; None takes it away."""
        if self.system is not None:
            del self.messages[0]
        if text is not None:
            self.messages.insert(0, {"role": "system", "content": text})

    def add(self, question: str, answer: str) -> None:
        self.messages.append({"role": "user", "content": question})
        self.messages.append({"role": "assistant", "content": answer})

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    @property
    def began(self) -> bool:
        return any(message["role"] != "system" for message in self.messages)

    # -- files -----------------------------------------------------------------------------------

    def save(self, path: Path, *, force: bool = False) -> bool:
        """Write the messages to ``path``; whether it replaced a file.

        A file that this conversation neither came from nor was saved to before is replaced only
        with ``force``, else :class:`UsageError`. What is there is replaced at once or not at all.
        Raises :class:`ClkilnError` if it cannot be written.
        """
        if "\0" in str(path):
            raise UsageError(f"no file can be called {str(path)!r}")
        target = Path(os.path.realpath(path))
        # os.path's: a name that is too long does not exist, and is refused below.
        exists = os.path.exists(target)
        if exists and not os.path.isfile(target):
            raise UsageError(f"{path} is no file: name another one")
        if exists and not force and target not in self._own_files:
            raise UsageError(f"{path} exists: /save --force {path} replaces it")
        draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with open(draft, "x", encoding="utf-8", errors="backslashreplace") as file:
                json.dump(self.messages, file, indent=2, ensure_ascii=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, target)
        except BaseException as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            if not isinstance(error, OSError):
                raise
            reason = error.strerror
            raise ClkilnError(f"cannot save the conversation to {path}: {reason}") from error
        self._own_files.add(target)
        return exists

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """The conversation in ``path``: a list of messages, or an object with one in ``messages``.

        Raises :class:`UsageError` if there is none, or with a role or content that is no text.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise UsageError(f"cannot read the conversation {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} holds no conversation: it is not JSON ({error})") from error
        found = cls()
        found.messages = _checked(data.get("messages") if isinstance(data, dict) else data, path)
        found._own_files.add(Path(os.path.realpath(path)))
        return found


def _checked(data: Any, path: Path) -> list[Message]:
    if not isinstance(data, list):
        raise UsageError(f"{path} holds no conversation: a list of messages is expected")
    messages = []
    for number, entry in enumerate(data, start=1):
        role, content = (
            (entry.get("role"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        )
        if role not in ROLES or not isinstance(content, str):
            raise UsageError(
                f"{path}: message {number} needs a role ({', '.join(ROLES)}) and a content in text"
            )
        if role == "system" and number > 1:
            raise UsageError(f"{path}: message {number} is a system message; only the first may be")
        messages.append({"role": role, "content": content})
    return messages
