"""The engine: a model on a device, warm from the cache file, answering prompts.

::

    with clkiln.Engine.load("smollm2-135m") as engine:
        print(engine.generate("What is the capital of France?", temperature=0).text)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from ..cache.layered import LayeredStore
from ..cache.paths import cache_file
from ..cache.rows import DriverRow
from ..cache.store import Store
from ..errors import ContextLengthError, OpenCLError, UsageError
from ..harness.ran import note_run, ran_under
from ..kernels.variants import VariantRequest
from ..runtime.context import Context
from ..runtime.device import Device
from ..runtime.identity import split_key
from ..runtime.program import ProgramLoader
from .catalog import resolve
from .chat import check_messages, render
from .choose import Chooser, together
from .completion import Completion, Stream
from .config import ModelConfig
from .conversation import Transcript
from .devices import choose_device
from .findings import check_fact
from .generation import Generation
from .kv_cache import DEFAULT_KV, KV_DTYPES
from .model import Model, open_model
from .options import AnswerOptions, Options, PromptOptions
from .plan import origins
from .runner import Runner
from .tokenizer import Tokenizer

logger = logging.getLogger(__name__)


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
        self._transcript = Transcript(tokenizer)
        self._generation: Generation | None = None

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str | Device | None = None,
        cache: str | Path | None = None,
        require_cache: bool = False,
        *,
        ctx_size: int | None = None,
        kv_dtype: str = DEFAULT_KV,
        quantize: str | None = None,
        variant: Sequence[str] = (),
        limits: Sequence[str | Path] = (),
        check: bool = True,
        warn: Callable[[str], None] | None = None,
    ) -> Engine:
        """Open ``model`` (a path or a catalog entry) on ``device`` with the device's cache file.

        ``device`` is a selector as of ``--device``; None asks ``CLKILN_DEVICE``, then takes the
        device that was measured quickest for this model, a GPU, or the best CPU device. ``cache``
        is the cache file's path. ``require_cache`` raises instead of compiling anything or using
        an untuned kernel. ``ctx_size`` is the context in tokens, by default the model's own limit;
        the KV cache takes memory as it fills. ``kv_dtype`` is ``f32`` or ``f16``: half the memory,
        at the cost of float16 rounding (up to 2e-3 of the logits, where float32 stays below 1e-5).
        ``quantize`` (``q4_0`` or ``q8_0``) codes float weights so while they are loaded.
        ``variant`` is as of ``--variant``. ``limits`` are profiles or files, as of ``--limits``, by
        which the device pretends to be a smaller one; none asks ``CLKILN_LIMITS``. ``check``: at
        the model's first start since the driver changed, compare some of its launches with their
        references, and replace what is wrong; later starts are not concerned. ``warn`` gets each
        warning as one line (default: the log).

        Raises :class:`~clkiln.errors.ModelError` and its kin for the file,
        :class:`~clkiln.errors.DeviceError` for the device,
        :class:`~clkiln.errors.OutOfDeviceMemory`, :class:`~clkiln.errors.UnsupportedOperation`,
        :class:`~clkiln.errors.CacheMissError`, :class:`~clkiln.errors.UsageError`.
        """
        warn = warn or logger.warning
        asked = VariantRequest.parse(variant)
        if kv_dtype not in KV_DTYPES:
            raise UsageError(f"KV cache dtype {kv_dtype!r}: {' or '.join(KV_DTYPES)}")
        opened = open_model(resolve(str(model)), quantize)
        config = opened.config
        request = together(asked, config.tied)
        limit = _context_limit(ctx_size, config)
        chosen, why = choose_device(device, config.digest, warn, limits)
        path = Path(cache) if cache else cache_file(chosen.info.name, chosen.info.platform)
        store = LayeredStore.open_or_memory(path, warn)
        try:
            context = Context(chosen)
            loader = ProgramLoader(context, store, require_cache=require_cache)
            info = chosen.info
            chooser = Chooser(store, info.driver_key, info, request, info.name)
            runner = Runner(
                context, loader, chooser, opened.weights, config,
                limit=limit, whole=ctx_size is not None, kv=kv_dtype, warn=warn,
            )  # fmt: skip
            engine = cls(runner, opened.tokenizer(), opened, store, why=why)
            due = check and engine._check_is_due()
            engine._report_choices(warn)
            engine._report_last_check(warn)
        except BaseException:
            store.close()
            raise
        if not due:
            return engine
        from .check import after_driver_change  # once in a driver's life

        def again() -> Engine:
            return cls.load(
                model, chosen, path, require_cache, ctx_size=ctx_size, kv_dtype=kv_dtype,
                quantize=quantize, variant=variant, check=False, warn=warn,
            )  # fmt: skip

        return after_driver_change(engine, again, warn)

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

    def generate(self, prompt: str, **options: Unpack[PromptOptions]) -> Completion:
        """The whole answer to ``prompt``; options and errors as of :meth:`stream`."""
        return _whole(self.stream(prompt, **options))

    def stream(self, prompt: str, **options: Unpack[PromptOptions]) -> Stream:
        """Answer ``prompt`` piece by piece; :class:`.options.PromptOptions` lists the options.

        The answer depends on the arguments alone, to the bit: of what is in the KV cache, only
        whole chunks of a beginning that is the same are used again.

        Raises :class:`~clkiln.errors.ContextLengthError` for a prompt that does not fit,
        :class:`~clkiln.errors.UsageError` for bad options; while iterating,
        :class:`~clkiln.errors.GenerationError` where the logits are nonsense and
        :class:`~clkiln.errors.OutOfDeviceMemory` where the KV cache can't grow.
        """
        raw, system = options.pop("raw", False), options.pop("system", None)
        wanted = Options.of(options)
        ids = self.encode(prompt, raw=raw, system=system)
        return self._answer(ids, wanted, continuation=raw, exact=True)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], **options: Unpack[AnswerOptions]
    ) -> Completion:
        """The whole answer to a conversation; options and errors as of :meth:`chat_stream`."""
        return _whole(self.chat_stream(messages, **options))

    def chat_stream(
        self, messages: Sequence[Mapping[str, Any]], **options: Unpack[AnswerOptions]
    ) -> Stream:
        """Answer a conversation, a list of :class:`.chat.Message`, piece by piece.

        Append the answer's text as an assistant's message and the next user's message, and only
        what is new is computed: see ``prefilled`` and ``reused`` of the completion. Options are
        those of :class:`.options.AnswerOptions`. Raises as :meth:`stream`, and
        :class:`~clkiln.errors.UsageError` for messages without a known role or text.
        """
        wanted = Options.of(options)
        ids = self._transcript.encode(self._render(messages))
        stream = self._answer(ids, wanted, exact=False)
        self._transcript.answered(stream.completion)
        return stream

    def encode(self, prompt: str, *, raw: bool = False, system: str | None = None) -> list[int]:
        """Token ids of a prompt: one user message in the chat template, after a ``system`` message
        where there is one, or ``raw``."""
        if not raw:
            messages = [] if system is None else [{"role": "system", "content": system}]
            return self.chat_ids([*messages, {"role": "user", "content": prompt}])
        if system is not None:
            raise UsageError("a raw prompt has no place for a system message: write it into it")
        ids = self.tokenizer.prompt(prompt)
        if not ids:
            raise UsageError("the prompt is empty")
        return ids

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for an answer."""
        return self.tokenizer.prompt(self._render(messages))

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        check_messages(messages)
        tokenizer, template = self.tokenizer, self._model.chat_template
        return render(messages, template, bos=tokenizer.bos_text, eos=tokenizer.eos_text)

    def _answer(
        self, ids: list[int], options: Options, *, continuation: bool = False, exact: bool
    ) -> Stream:
        limit = self.runner.limit
        if len(ids) > limit:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens and the context {limit}: shorten the prompt "
                f"or raise --ctx-size (the model's limit is {self.config.context_length})"
            )
        generation = Generation(
            self.runner, self.tokenizer, ids, options, continuation=continuation, exact=exact
        )

        def begin() -> None:
            if self._generation is not None:
                self._generation.ended = True
            self._generation = generation

        return Stream(generation.pieces(begin), generation.completion, generation.cancel)

    # -- what happened ---------------------------------------------------------------------------

    @property
    def tuned(self) -> bool:
        """Whether every kernel in use was tuned for this device."""
        return set(origins(self.runner.planner.choices)) <= {"tuned", "neighbour"}

    def fallbacks(self) -> list[str]:
        """What does not run as tuned or as asked, a line each."""
        lines = [c.fallback for c in self.runner.planner.choices.values() if c.fallback]
        if self.runner.shortened:
            limit = self.runner.limit
            lines.append(f"context: {limit} positions at most, more breaks {self.runner.shortened}")
        ops = {workload.op for workload in self.runner.planner.choices}
        rules = self.runner.planner.chooser.rules.of_ops(ops)
        return lines + rules.lines() + self._not_as_asked()

    def _not_as_asked(self) -> list[str]:
        """Which operations don't run as ``--variant`` asks of all, and why."""
        planner = self.runner.planner
        return planner.chooser.abilities.unmet(planner.choices)

    def _check_is_due(self) -> bool:
        """Whether the model runs for the first time since the driver of its device changed.

        Not where nothing is kept: it would be due at every start. Not under ``--variant``, and not
        where nothing may be compiled. A driver under other limits is the same driver.
        """
        driver, planner = self.device.driver_key, self.runner.planner
        if not self.store.keeps or planner.loader.require_cache or str(planner.chooser.variants):
            return False
        own, _ = split_key(driver)
        if ran_under(self.store) <= {own}:
            return False
        return self.store.fact(check_fact(self.runner.graph), driver=driver) is None

    def _report_last_check(self, warn: Callable[[str], None]) -> None:
        """What a check found and could not replace is said at every start, until one finds none."""
        if str(self.runner.planner.chooser.variants):
            return  # it was of other programs
        last = self.store.fact(check_fact(self.runner.graph), driver=self.device.driver_key)
        problem = last.get("problem") if isinstance(last, dict) else None
        if problem:
            warn(f"the latest check of this model here: {problem}; clkiln check looks again")

    def _report_choices(self, warn: Callable[[str], None]) -> None:
        counts = origins(self.runner.planner.choices)
        lacking = self._not_as_asked()
        if lacking:
            warn(f"not as asked: {'; '.join(lacking)}")
        if self.runner.shortened:
            warn(
                f"the context is {self.runner.limit} positions: {self.device.name} can't run more "
                f"of this model ({self.runner.shortened})"
            )
        self.store.put_driver(DriverRow(self.device.driver_key, self.device.as_dict()))
        note_run(self.store, self.device.driver_key)
        if counts.get("older driver"):
            warn(
                f"the driver of {self.device.name} changed: {counts['older driver']} kernels run "
                f"with the parameters of before, verified again; clkiln tune would time them anew"
            )
        elif untuned := counts.get("default", 0) + counts.get("similar", 0):
            instead = {"default": "safe defaults", "similar": "parameters of similar shapes"}
            run = " and ".join(what for origin, what in instead.items() if counts.get(origin))
            warn(
                f"{untuned} of {sum(counts.values())} kernels are not tuned for "
                f"{self.device.name}: {run} run; clkiln tune would help"
            )


def _whole(stream: Stream) -> Completion:
    for _ in stream:
        pass
    return stream.completion


def _context_limit(asked: int | None, config: ModelConfig) -> int:
    if asked is None:
        return config.context_length
    if asked < 1:
        raise UsageError(f"a context of {asked} positions; ask for at least 1")
    if asked > config.context_length:
        raise UsageError(
            f"a context of {asked} positions; the model knows at most {config.context_length}"
        )
    return asked
