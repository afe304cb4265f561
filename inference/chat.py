"""Chat templates: the Jinja program that a model file carries, run in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, Required, TypedDict

from ..errors import ModelError, UsageError

ROLES = ("system", "user", "assistant", "tool")


class Message(TypedDict, total=False):
    """A message of a conversation; ``name`` and the like go to the template as they are."""

    role: Required[str]
    content: Required[str]


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``UsageError``, naming the message, unless each has a known role and text."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise UsageError('messages are a list such as [{"role": "user", "content": "Hello"}]')
    if not messages:
        raise UsageError("no messages: a conversation has at least one")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise UsageError(f"message {number} is no mapping with role and content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UsageError(f"message {number}: role {role!r} is none of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise UsageError(
                f"message {number}: its content is no text, but {type(content).__name__}"
            )


def render(
    messages: Sequence[Mapping[str, Any]],
    template: str | None,
    *,
    bos: str,
    eos: str,
    add_generation_prompt: bool = True,
) -> str:
    """The prompt text for ``messages`` (each with ``role`` and ``content``).

    ``bos`` and ``eos`` are the tokens spelt out (``Tokenizer.bos_text``). Whitespace around blocks
    is trimmed and helpers are there as in the ``transformers`` library, for which templates are
    written. Raises ``ModelError`` where there is no template, or it is broken or refuses.
    """
    if not template:
        raise ModelError(
            "the model has no chat template; clkiln run --raw passes a prompt as it is"
        )
    # Imported here: a raw prompt does not pay for it.
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
        )
    except _RefusalError as error:
        raise ModelError(f"the model's chat template refuses these messages: {error}") from error
    except Exception as error:
        # A template is a program from a file: it can raise anything.
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ModelError(
            f"the model's chat template failed: {reason}; clkiln run --raw passes a prompt as it is"
        ) from error


class _RefusalError(Exception):
    """A template called ``raise_exception``."""


def _refuse(message: str) -> NoReturn:
    raise _RefusalError(" ".join(str(message).split()))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which would put entities into prompts.
    return json.dumps(value, ensure_ascii=False, indent=indent)
