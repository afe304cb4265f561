"""One answer: prefill, then a token at a time until something ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

from ..errors import DeviceError, GenerationError, OpenCLError, UsageError
from ..kernels.types import Array
from .completion import Completion, TokenLogprob, TopLogprob
from .detokenize import StopStrings, StreamDecoder
from .options import Options
from .runner import Runner
from .sampling import Sampler, check_logits, largest, log_softmax
from .tokenizer import Tokenizer

#: What leaves the contents of the KV cache in doubt.
_SPOILT = (OpenCLError, DeviceError, GenerationError)


class Generation:
    """Makes the tokens of one completion on a runner. ``prompt`` is all that it has to begin with.

    ``exact`` keeps of the KV cache only what has the bits that computing it anew would give, so
    that an answer does not depend on those before it; otherwise all that fits is kept.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        options: Options,
        *,
        continuation: bool = False,
        exact: bool = True,
    ) -> None:
        self.called = time.perf_counter()
        self.runner, self.tokenizer, self.options, self.exact = runner, tokenizer, options, exact
        self.sampler: Sampler = options.sampler(runner.config)
        self.completion = Completion(prompt_token_ids=list(prompt), seed=self.sampler.seed)
        if options.logprobs is not None:
            vocab = runner.config.vocab
            if options.logprobs > vocab:
                raise UsageError(
                    f"logprobs of {options.logprobs} tokens; the model's vocabulary has {vocab}"
                )
            self.completion.logprobs = []
        self._decoder = StreamDecoder(tokenizer, continuation=continuation)
        self._stops = StopStrings(options.stop)
        #: Set when another answer began on the runner: this one can't go on.
        self.ended = False
        self._cancelled = False

    def cancel(self) -> None:
        """Let :meth:`pieces` end after the launches at hand."""
        self._cancelled = True

    def pieces(self, begin: Callable[[], None]) -> Generator[str, None, None]:
        """The answer's text as it comes; ``begin`` is called when its first token is asked for."""
        begin()
        times = [time.perf_counter()]
        try:
            for piece in self._text(times):
                if piece:
                    self.completion.text += piece
                    yield piece
                    if self.ended:
                        raise UsageError(
                            "another answer began on this engine: it gives one at a time"
                        )
        except _SPOILT:
            self.runner.reset()
            raise
        finally:
            self._note_times([*times, time.perf_counter()])

    def _text(self, times: list[float]) -> Generator[str, None, None]:
        """Pieces of text, empty ones too; first and last token's times go to ``times``."""
        completion, decoder, stops = self.completion, self._decoder, self._stops
        if not self._prefill():
            return
        token = self._choose()
        times.append(time.perf_counter())
        while True:
            if token in self.tokenizer.stop_ids:
                completion.finish_reason = "stop"
                break
            yield stops.push(decoder.push(token))
            if self._cancelled:
                return
            if stops.found:
                break
            if len(completion.token_ids) == self.options.max_tokens:
                break
            if self.runner.length == self.runner.limit:
                break
            self._feed(token)
            token = self._choose()
        times.append(time.perf_counter())
        self.runner.loader.keep_fresh()
        tail = stops.push(decoder.flush()) + stops.flush()
        completion.finish_reason = completion.finish_reason or ("stop" if stops.found else "length")
        yield tail

    def _prefill(self) -> bool:
        """False if it was cancelled."""
        runner, ids = self.runner, self.completion.prompt_token_ids
        # The last token is always computed: its logits are needed.
        kept = min(runner.common(ids), len(ids) - 1)
        if self.exact:
            kept = runner.repeatable_part(kept)
        self.completion.reused, self.completion.prefilled = kept, len(ids) - kept
        self.sampler.begin(ids)
        runner.reset(kept)
        whole = runner.feed(ids[kept:], lambda: self._cancelled)
        self.completion.prefilled = runner.length - kept
        return whole

    def _feed(self, token: int) -> None:
        if self.sampler.plain:
            self.runner.feed_pick()
        else:
            self.runner.feed([token])

    def _choose(self) -> int:
        """The next token, noted in the completion."""
        completion, runner = self.completion, self.runner
        step = len(completion.token_ids)
        logits: Array | None = None
        if self.sampler.plain:
            token = runner.pick(step)
        else:
            logits = runner.logits()
            check_logits(logits, step, runner.context.info.name)
            token = self.sampler.pick(logits)
        self.sampler.saw(token)
        completion.token_ids.append(token)
        if completion.logprobs is not None:
            logits = runner.logits() if logits is None else logits
            completion.logprobs.append(self._logprob(token, logits))
        return token

    def _logprob(self, token: int, logits: Array) -> TokenLogprob:
        likely = log_softmax(logits)
        count = self.options.logprobs or 0
        best = largest(logits, count).tolist() if count else []
        top = [TopLogprob(id, self._spelt(id), float(likely[id])) for id in best]
        return TokenLogprob(token, self._spelt(token), float(likely[token]), top)

    def _spelt(self, id: int) -> str:
        return self.tokenizer.token_bytes(id).decode("utf-8", "replace")

    def _note_times(self, times: Sequence[float]) -> None:
        """``times``: start, first token, end, and whatever came later."""
        if len(times) < 3:  # cut short before the first token
            return
        completion, (start, first, end) = self.completion, times[:3]
        produced = len(completion.token_ids)
        completion.timing = {
            "prefill_s": first - start,
            "decode_s": end - first,
            "first_token_s": first - self.called,
            "prefill_tok_s": completion.prefilled / (first - start),
            "decode_tok_s": (produced - 1) / (end - first) if produced > 1 else None,
        }
