"""``clkiln chat``: a conversation with a model, on a terminal or line by line from a pipe."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ClkilnError, ContextLengthError
from .chat_commands import Commands, is_command
from .clock import since_process_start
from .common import model_argument, note, print_json_line, say, shared, warn
from .conversation import Conversation
from .explain import explain_answer, explain_device, explain_programs
from .generation import loading, sampling, system_option
from .interrupts import Interrupts
from .prompting import Prompter

if TYPE_CHECKING:
    from ..inference.completion import Completion
    from ..inference.engine import Engine


@click.command("chat")
@model_argument
@system_option
@click.option("--load", "loaded", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              metavar="FILE", help="Go on with a conversation that /save wrote.")  # fmt: skip
@sampling
@click.option("--verbose", is_flag=True, help="Say what each answer cost, and what was reused.")
@loading
@shared("json")
def command(
    model: str,
    system: str | None,
    loaded: Path | None,
    verbose: bool,
    as_json: bool,
    sampling: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Talk with MODEL (a .gguf file, a model directory or a catalog entry).

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands. From a pipe, each line is
    a message; with --json each answer is one line of JSON.
    """
    conversation = Conversation() if loaded is None else Conversation.load(loaded)
    if system is not None:
        conversation.set_system(system)
    chat(model, conversation, sampling, loading, verbose=verbose, as_json=as_json)


def chat(
    model: str,
    conversation: Conversation,
    sampling: dict[str, Any],
    loading: dict[str, Any],
    *,
    verbose: bool = False,
    as_json: bool = False,
) -> None:
    """Load ``model`` and talk until the input ends or somebody leaves."""
    from ..inference.engine import Engine

    with Engine.load(model, **loading, warn=warn) as engine:
        prompter, interrupts = Prompter(), Interrupts()
        talk = Talk(engine, conversation, sampling, interrupts, verbose=verbose, as_json=as_json)
        # A model that can't chat shall say so before anybody typed a question.
        talk.check()
        if verbose:
            explain_device(engine)
            note(f"start:      {since_process_start():.2f} s")
        if prompter.terminal:
            note(f"{engine.config.name} on {engine.device.name}; /help lists commands")
        # In a pipe Ctrl-C ends all, as everywhere.
        with interrupts if prompter.terminal else contextlib.nullcontext():
            _loop(prompter, talk, interrupts)
        if verbose:
            explain_programs(engine)


def _loop(prompter: Prompter, talk: Talk, interrupts: Interrupts) -> None:
    interrupted = False
    while True:
        try:
            with interrupts.raised():
                text = prompter.read()
            interrupted = False
            if text is None:
                if prompter.terminal:
                    note("")
                return
            if not talk.take(text):
                return
        except KeyboardInterrupt:
            if not prompter.terminal:
                raise
            note("\n(Ctrl-D or /quit leaves)" if interrupted else "")
            interrupted = True
        except ClkilnError as error:
            # A script ends with the first error; a person goes on, and can save what there is.
            if not prompter.terminal:
                raise
            note(f"error: {' '.join(str(error).split())}")


class Talk:
    """The turns of a conversation: messages in, answers on standard output."""

    def __init__(
        self,
        engine: Engine,
        conversation: Conversation,
        sampling: dict[str, Any],
        interrupts: Interrupts,
        *,
        verbose: bool,
        as_json: bool,
    ) -> None:
        self._engine, self._conversation, self._sampling = engine, conversation, sampling
        self._interrupts = interrupts
        self._verbose, self._as_json = verbose, as_json
        self._commands = Commands(conversation, self.check)

    def take(self, text: str) -> bool:
        """Answer a message or follow a command; False if it was to leave."""
        if not text.strip():
            return True
        if is_command(text):
            return self._commands.follow(text.strip())
        # Two slashes are one that is meant: a message may begin with a path.
        self._answer(text[1:] if text.startswith("//") else text)
        return True

    def check(self) -> None:
        """Raises ``ModelError`` if the model's template refuses the conversation."""
        self._engine.chat_ids([*self._conversation.messages, {"role": "user", "content": "?"}])

    def _answer(self, question: str) -> None:
        messages = [*self._conversation.messages, {"role": "user", "content": question}]
        try:
            completion = self._stream(messages)
        except ContextLengthError as error:
            raise ContextLengthError(self._no_room()) from error
        stopped = completion.finish_reason is None
        if stopped and not completion.text:
            note("(stopped before an answer: the question is taken back)")
            return
        self._conversation.add(question, completion.text)
        if self._as_json:
            print_json_line(_turn(question, completion))
        self._remark(completion, stopped)

    def _stream(self, messages: list[dict[str, str]]) -> Completion:
        shown = False
        stream = self._engine.chat_stream(messages, **self._sampling)
        self._interrupts.cancel(stream)
        try:
            for piece in stream:
                if not self._as_json:
                    say(piece)
                    shown = True
        finally:
            if shown:
                click.echo()
        return stream.completion

    def _remark(self, completion: Completion, stopped: bool) -> None:
        asked = self._sampling["max_tokens"]
        if stopped:
            note("(stopped; what was said so far stays in the conversation)")
        elif completion.finish_reason == "length" and len(completion.token_ids) < asked:
            note(
                f"(the context of {self._engine.runner.limit} tokens is full: /reset begins a new "
                f"conversation{self._more_room()})"
            )
        elif completion.finish_reason == "length":
            note(f"(cut off after {asked} tokens: start with a larger -n for longer answers)")
        if self._verbose:
            explain_answer(completion)

    def _no_room(self) -> str:
        limit = f"the context of {self._engine.runner.limit} tokens"
        if self._conversation.began:
            return f"no room in {limit}: /reset begins a new conversation{self._more_room()}"
        return f"the message does not fit into {limit}: shorten it{self._more_room()}"

    def _more_room(self) -> str:
        if self._engine.runner.limit >= self._engine.config.context_length:
            return ""
        return f", a start with -c {self._engine.config.context_length} gives more room"


def _turn(question: str, completion: Completion) -> dict[str, Any]:
    """The object of a turn with ``--json``."""
    timing = completion.timing
    return {
        "prompt": question,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "prompt_tokens": len(completion.prompt_token_ids),
        "prefilled": completion.prefilled,
        "reused": completion.reused,
        "timing": {
            key: timing.get(key)
            for key in ("first_token_s", "prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s")
        },
    }
