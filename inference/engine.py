"""The engine: a model on a device, warm from the cache file, answering prompts.

::

    with clkiln.Engine.load("smollm2-135m") as engine:
        print(engine.generate("What is the capital of France?", temperature=0).text)
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..cache.paths import cache_file
from ..cache.rows import DriverRow
from ..cache.store import Store
from ..errors import ContextLengthError, OpenCLError, UsageError
from ..kernels.variants import VariantRequest
from ..runtime.context import Context
from ..runtime.device import Device
from ..runtime.program import ProgramLoader
from .catalog import resolve
from .choose import Chooser, together
from .config import ModelConfig
from .detokenize import StreamDecoder
from .devices import choose_device
from .model import Model, open_model
from .plan import origins
from .runner import DEFAULT_KV, KV_DTYPES, Runner
from .sampling import Sampler, check_logits
from .tokenizer import Tokenizer

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length"]
#: Context without ``ctx_size``: the model's own limit, but at most this many positions.
DEFAULT_CONTEXT = 8192
DEFAULT_TEMPERATURE = 0.7


@dataclass
class Completion:
    """An answer. Times are seconds, speeds tokens per second.

    ``finish_reason`` is ``stop`` (the model ended it) or ``length`` (``max_tokens`` or the context
    ran out). ``timing``: ``prefill_s``, ``decode_s``, ``first_token_s`` (from the call),
    ``prefill_tok_s``, ``decode_tok_s`` (None where there was nothing to time).
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    seed: int | None = None
    timing: dict[str, float | None] = field(default_factory=dict)


class Stream:
    """An answer as it comes: iterate over it for pieces of text, always whole characters.

    ``completion`` holds all of it when the iteration is over.
    """

    def __init__(self, pieces: Iterator[str], completion: Completion) -> None:
        self._pieces, self.completion = pieces, completion

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)


class Engine:
    """A loaded model. Make it with :meth:`load`; use it as a context manager or ``close`` it.

    One sequence at a time and one thread: an answer that begins ends the one before.
    """

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, model: Model, store: Store, *, why: str
    ) -> None:
        self.runner, self.tokenizer, self.store = runner, tokenizer, store
        self.config = runner.config
        self.device = runner.context.info
        #: Why this device was chosen, as a phrase.
        self.device_reason = why
        self._model = model
        self._answering: Completion | None = None

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str | Device | None = None,
        cache: str | Path | None = None,
        *,
        require_cache: bool = False,
        ctx_size: int | None = None,
        kv_dtype: str = DEFAULT_KV,
        variant: Sequence[str] = (),
        warn: Callable[[str], None] | None = None,
    ) -> Engine:
        """Open ``model`` (a path or a catalog entry) on ``device`` with the device's cache file.

        ``device`` is a selector as of ``--device``; None asks ``CLKILN_DEVICE``, then takes the
        device that was measured quickest for this model, a GPU, or the best CPU device. ``cache``
        is the cache file's path. ``require_cache`` raises instead of compiling anything or using
        an untuned kernel. ``variant`` is as of ``--variant``. ``warn`` gets each warning as one
        line (default: the log). ``kv_dtype`` is ``f32`` or ``f16``: half the memory, at the cost of
        float16 rounding (up to 2e-3 of the logits, where float32 stays below 1e-5).

        Raises :class:`~clkiln.errors.ModelError` and its kin for the file,
        :class:`~clkiln.errors.DeviceError` for the device,
        :class:`~clkiln.errors.OutOfDeviceMemory`, :class:`~clkiln.errors.UnsupportedOperation`,
        :class:`~clkiln.errors.CacheMissError`, :class:`~clkiln.errors.UsageError`.
        """
        warn = warn or logger.warning
        asked = VariantRequest.parse(variant)
        if kv_dtype not in KV_DTYPES:
            raise UsageError(f"KV cache dtype {kv_dtype!r}: {' or '.join(KV_DTYPES)}")
        opened = open_model(resolve(str(model)))
        config = opened.config
        request = together(asked, config.tied)
        limit = _context_limit(ctx_size, config)
        chosen, why = choose_device(device, config.digest, warn)
        path = Path(cache) if cache else cache_file(chosen.info.name, chosen.info.platform)
        store = Store.open_or_memory(path, warn)
        try:
            context = Context(chosen)
            loader = ProgramLoader(context, store, require_cache=require_cache)
            chooser = Chooser(store, chosen.info.driver_key, chosen.info, request)
            runner = Runner(
                context, loader, chooser, opened.weights, config,
                limit=limit, kv=kv_dtype, warn=warn,
            )  # fmt: skip
            engine = cls(runner, opened.tokenizer(), opened, store, why=why)
            engine._report_choices(warn)
        except BaseException:
            store.close()
            raise
        return engine

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the device, keep what an unfinished answer compiled, close the cache file."""
        try:
            self.runner.context.close()
            # A binary that can't be kept is compiled again next time; the answer is out.
            with contextlib.suppress(OpenCLError):
                self.runner.loader.keep_fresh()
        finally:
            self.store.close()

    # -- generation ------------------------------------------------------------------------------

    def generate(self, prompt: str, **options: Any) -> Completion:
        """The whole answer to ``prompt``; options as of :meth:`stream`."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.completion

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 512,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        raw: bool = False,
    ) -> Stream:
        """Answer ``prompt`` piece by piece.

        ``temperature`` None is the model's own, else 0.7; 0 is greedy. ``top_k`` and ``top_p``
        None are the model's own, else off. ``raw`` passes the prompt without the chat template.
        Raises :class:`~clkiln.errors.ContextLengthError` for a prompt that does not fit,
        :class:`~clkiln.errors.UsageError` for bad options, and while iterating
        :class:`~clkiln.errors.GenerationError` where the logits are nonsense.
        """
        called = time.perf_counter()
        if max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; at least 1 token can be asked for")
        c = self.config
        first = (temperature, c.temperature, DEFAULT_TEMPERATURE)
        sampler = Sampler(
            next(value for value in first if value is not None),
            top_k if top_k is not None else c.top_k or 0,
            top_p if top_p is not None else c.top_p or 1.0,
            seed,
        )
        ids = self.encode(prompt, raw=raw)
        if len(ids) > self.runner.limit:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens and the context {self.runner.limit}: shorten "
                f"the prompt or raise --ctx-size (the model's limit is {c.context_length})"
            )
        completion = Completion(prompt_token_ids=ids, seed=sampler.seed)
        decoder = StreamDecoder(self.tokenizer, continuation=raw)
        pieces = self._pieces(completion, sampler, decoder, max_tokens, called)
        return Stream(pieces, completion)

    def encode(self, prompt: str, *, raw: bool = False) -> list[int]:
        """Token ids of a prompt: one user message in the chat template, or ``raw``."""
        if not raw:
            return self.chat_ids([{"role": "user", "content": prompt}])
        ids = self.tokenizer.prompt(prompt)
        if not ids:
            raise UsageError("the prompt is empty")
        return ids

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for an answer."""
        from .chat import render

        tokenizer = self.tokenizer
        text = render(
            messages,
            self._model.chat_template,
            bos=tokenizer.bos_text,
            eos=tokenizer.eos_text,
        )
        return tokenizer.prompt(text)

    def _pieces(
        self,
        completion: Completion,
        sampler: Sampler,
        decoder: StreamDecoder,
        max_tokens: int,
        called: float,
    ) -> Iterator[str]:
        runner = self.runner
        ids = completion.prompt_token_ids
        self._answering = completion
        start = time.perf_counter()
        runner.reset()
        runner.feed(ids)
        token = self._next(sampler, 0)
        first = time.perf_counter()
        produced = 0
        while True:
            produced += 1
            completion.token_ids.append(token)
            if token in self.tokenizer.stop_ids:
                completion.finish_reason = "stop"
                break
            piece = decoder.push(token)
            if piece:
                completion.text += piece
                yield piece
                if self._answering is not completion:
                    raise UsageError("another answer began on this engine: it gives one at a time")
            if produced == max_tokens or runner.length == runner.limit:
                break
            if sampler.temperature == 0:
                runner.feed_pick()
            else:
                runner.feed([token])
            token = self._next(sampler, produced)
        end = time.perf_counter()
        runner.loader.keep_fresh()
        completion.timing = {
            "prefill_s": first - start,
            "decode_s": end - first,
            "first_token_s": first - called,
            "prefill_tok_s": len(ids) / (first - start),
            "decode_tok_s": (produced - 1) / (end - first) if produced > 1 else None,
        }
        tail = decoder.flush()
        if tail:
            completion.text += tail
            yield tail

    def _next(self, sampler: Sampler, step: int) -> int:
        if sampler.temperature == 0:
            return self.runner.pick(step)
        logits = self.runner.logits()
        check_logits(logits, step, self.device.name)
        return sampler.pick(logits)

    # -- what happened ---------------------------------------------------------------------------

    @property
    def tuned(self) -> bool:
        """Whether every kernel in use was tuned for this device."""
        return set(origins(self.runner.planner.choices)) <= {"tuned", "neighbour"}

    def fallbacks(self) -> list[str]:
        """What does not run as tuned or as asked, a line each."""
        chooser = self.runner.planner.chooser
        lines = [c.fallback for c in self.runner.planner.choices.values() if c.fallback]
        ops = {workload.op for workload in self.runner.planner.choices}
        kind = chooser.variants.default
        lines += [f"{op}: has no {kind} variant" for op in chooser.variants.lacking(ops)]
        return lines

    def _report_choices(self, warn: Callable[[str], None]) -> None:
        counts = origins(self.runner.planner.choices)
        lacking = [line for line in self.fallbacks() if line.endswith(" variant")]
        if lacking:
            warn(f"not as asked: {'; '.join(lacking)}")
        self.store.put_driver(DriverRow(self.device.driver_key, self.device.as_dict()))
        if counts.get("older driver"):
            warn(
                f"the driver of {self.device.name} changed: {counts['older driver']} kernels run "
                f"with the parameters of before, verified again; clkiln tune would time them anew"
            )
        elif counts.get("default"):
            warn(
                f"{counts['default']} of {sum(counts.values())} kernels are not tuned for "
                f"{self.device.name}: safe defaults run; clkiln tune would help"
            )


def _context_limit(asked: int | None, config: ModelConfig) -> int:
    if asked is None:
        return min(config.context_length, DEFAULT_CONTEXT)
    if asked < 1:
        raise UsageError(f"a context of {asked} positions; ask for at least 1")
    if asked > config.context_length:
        raise UsageError(
            f"a context of {asked} positions; the model knows at most {config.context_length}"
        )
    return asked
