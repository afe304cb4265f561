"""Runs a model's steps on a device: tokens in, logits out. Knows no text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import ContextLengthError, GenerationError
from ..kernels.types import Array, Workload
from ..runtime.context import Context
from ..runtime.program import ProgramLoader
from .buckets import CHUNK, TOKENS, context_bucket, token_bucket
from .choose import Chooser
from .config import ModelConfig
from .graph import MATRIX_OPS, Graph, Step
from .kv_cache import BLOCK, DEFAULT_KV, KVCache
from .plan import Plan, Planner
from .resident import ResidentWeights
from .weights import Weights

#: Bits of the argmax kernel's status.
NOT_FINITE, ALL_EQUAL = 1, 2
#: Arguments that are vectors of the file; ``w`` of a norm is one, too.
VECTORS = ("bias", "norm", "q_norm", "k_norm")


class Runner:
    """One sequence on one device. ``tokens`` are those whose keys and values are in the KV cache.

    ``limit`` is the context: more positions raise :class:`~clkiln.errors.ContextLengthError`. The
    KV cache grows towards it in blocks. Where the device can't run as long a context, it is the
    longest that can be, and :attr:`shortened` says why; with ``whole`` that is an
    :class:`~clkiln.errors.UnsupportedOperation`.
    """

    def __init__(
        self,
        context: Context,
        loader: ProgramLoader,
        chooser: Chooser,
        weights: Weights,
        config: ModelConfig,
        *,
        limit: int,
        whole: bool = False,
        kv: str = DEFAULT_KV,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.context, self.loader, self.config, self.limit = context, loader, config, limit
        self.weights, self.tokens = weights, list[int]()
        # Positions from the start that were computed in whole chunks: these same launches would
        # compute them in any run over the same tokens.
        self._repeatable = 0
        self.graph = Graph(config, weights, kv, context.info)
        self.planner = Planner(context, loader, chooser, ResidentWeights(context, weights), warn)
        #: What a longer context would break on this device; empty if none does.
        self.shortened = ""
        #: The largest bucket of contexts, where the device can't run the limit's.
        self._ceiling: int | None = None
        self._fit_context(whole)
        #: Seconds that packing and uploading the weights took.
        self.weights_seconds = 0.0
        self._cache = KVCache(context, self.planner, weights, kv, self.limit)
        self._picked: int | None = None
        self._plans: dict[tuple[int, int], Plan] = {}
        #: Runs a plan for a number of tokens; a check puts its own in this place.
        self.execute: Callable[[Plan, int], None] = Plan.run
        self._rows = 1
        self._load()

    # -- running -------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Positions in the KV cache."""
        return len(self.tokens)

    @property
    def capacity(self) -> int:
        """Positions that there is room for at the moment."""
        return self._cache.capacity

    def reset(self, length: int = 0) -> None:
        """Forget all positions from ``length`` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"can't keep {length} of {self.length} positions")
        self._repeatable = min(self._repeatable, length // CHUNK * CHUNK)
        del self.tokens[length:]

    def common(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens``, from the first on, are in the KV cache."""
        pairs = enumerate(zip(self.tokens, tokens, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(self.length, len(tokens)))

    def repeatable_part(self, length: int) -> int:
        """How many of the first ``length`` positions computing them anew would not change."""
        return min(self._repeatable, length) // CHUNK * CHUNK

    def bucket(self, length: int) -> int:
        """The context bucket of a step that ends with ``length`` positions."""
        ctx = context_bucket(length)
        return min(ctx, self._ceiling or ctx)

    def feed(self, tokens: Sequence[int], cancelled: Callable[[], bool] = lambda: False) -> bool:
        """Append ``tokens`` to the sequence; afterwards logits and pick are those of the last.

        ``cancelled`` is asked before each chunk; if it says so, the rest is left out and the
        answer is False, and there are no logits.

        Raises :class:`~clkiln.errors.ContextLengthError` or
        :class:`~clkiln.errors.OutOfDeviceMemory`, with nothing done, if they don't fit.
        """
        if not tokens:
            raise ValueError("no tokens to feed")
        self._check(tokens)
        self._grow(self.length + len(tokens))
        for start in range(0, len(tokens), CHUNK):
            if cancelled():
                return False
            self._body(tokens[start : start + CHUNK])
        self._head()
        return True

    def feed_pick(self) -> None:
        """Append the token that is the device's own pick: a greedy step without a copy of it."""
        self._check([0])
        token = self.pick(self.length) if self._picked is None else self._picked
        self._body([token], on_device=True)
        self._head()

    def pick(self, step: int) -> int:
        """The greedy token. Raises :class:`~clkiln.errors.GenerationError` on bad logits."""
        token, status = (int(v) for v in self.planner.tensors["pick"].read())
        if status:
            what = "are not finite" if status & NOT_FINITE else "are all equal"
            raise GenerationError(
                f"step {step}: the logits {what} on {self.context.info.name}: no token can be "
                f"trusted (another --variant or --device may work)"
            )
        self._picked = token
        return token

    def logits(self) -> Array:
        """float32 ``[vocab]`` of the last position."""
        return self.planner.tensors["logits"].read()

    # -- steps -----------------------------------------------------------------------------------

    def _check(self, tokens: Sequence[int]) -> None:
        if self.length + len(tokens) > self.limit:
            raise ContextLengthError(
                f"{len(tokens)} tokens behind {self.length} don't fit into a context of "
                f"{self.limit}: shorten the prompt or raise --ctx-size"
            )
        if min(tokens) < 0 or max(tokens) >= self.config.vocab:
            raise ValueError(f"a token id outside 0 to {self.config.vocab - 1}")

    def _body(self, tokens: Sequence[int], *, on_device: bool = False) -> None:
        """Run the layers over ``tokens``; the last row ends as row 0 of x."""
        m, start = len(tokens), self.length
        self._grow(start + m)
        plan = self._body_plan(token_bucket(m), self.bucket(start + m))
        tensors = self.planner.tensors
        if not on_device:
            target = tensors["pick" if m == 1 else "tokens"]
            target.write(np.array(tokens, np.int32))
        self._picked = None
        tensors["state"].write(np.array([start, m, 0, 0], np.int32))
        self.execute(plan, m)
        if m > 1:
            tensors["x"].move(self.config.hidden * (m - 1), self.config.hidden)
        # Last: whatever cuts this short leaves positions that the next tokens overwrite.
        self.tokens.extend(tokens)
        if start == self._repeatable and m == CHUNK:
            self._repeatable += CHUNK

    def _head(self) -> None:
        self.execute(self._head_plan(), 1)

    def _body_plan(self, m: int, ctx: int) -> Plan:
        if (m, ctx) not in self._plans:
            self._room(m)
            self._plans[m, ctx] = self.planner.plan(list(self.graph.body(m, ctx)))
        return self._plans[m, ctx]

    def _head_plan(self) -> Plan:
        if (0, 0) not in self._plans:
            self._plans[0, 0] = self.planner.plan(list(self.graph.head()))
        return self._plans[0, 0]

    # -- memory ----------------------------------------------------------------------------------

    def _fit_context(self, whole: bool) -> None:
        """Hold every context that may come against the device."""
        abilities = self.planner.chooser.abilities

        def workloads(ctx: int) -> list[Workload]:
            return [w for m in (1, *TOKENS) for w in self.graph.of_context(m, ctx)]

        longest, broken = abilities.longest_context(workloads, self.limit)
        if broken is None or longest == 0:
            return  # even the shortest can't run: that is said with all else that can't
        if whole and longest < self.limit:
            raise abilities.no_context(self.limit, longest, broken)
        if longest < self.limit:
            self.shortened = f"{broken.workload}: {broken.reason}"
        self.limit = self._ceiling = longest

    def _load(self) -> None:
        """Choose for decoding, allocate, load programs and weights."""
        ctx = context_bucket(1)
        steps = [*self.graph.body(1, ctx), *self.graph.head()]
        prefill = [step for m in TOKENS for step in self.graph.body(m, ctx)]
        choices = self.planner.resolve(steps, prefill)
        # Prefill is only chosen now: what this device can't run is said before anything is there.
        self.planner.resolve(prefill)
        start = time.perf_counter()
        self.planner.resident.upload(_weights(steps))
        self._vectors(steps)
        self.weights_seconds = time.perf_counter() - start
        tensors, c = self.planner.tensors, self.config
        for name, shape, dtype in (
            ("state", 4, np.int32),
            ("pick", 2, np.int32),
            ("logits", c.vocab, np.float32),
        ):
            tensors[name] = self.context.empty((shape,), dtype, what=name)
        self._activations(1)
        self._grow(min(self.limit, BLOCK))
        self.planner.load(choices)

    def _vectors(self, steps: Sequence[Step]) -> None:
        """Norms and biases; a weight that is no matrix is a vector of the file. And where the
        pieces of split matrices begin."""
        for step in steps:
            piece = step.tensors.get("piece")
            if piece and piece not in self.planner.tensors:
                first = np.array([piece.split()[1]], np.int32)
                self.planner.tensors[piece] = self.context.upload(first, what=piece)
            names = [step.tensors[name] for name in VECTORS if name in step.tensors]
            if step.workload.op == "rmsnorm":
                names.append(step.tensors["w"])
            for name in names:
                if name not in self.planner.tensors:
                    data = self.weights.vector(name)
                    self.planner.tensors[name] = self.context.upload(data, what=name)

    def _activations(self, rows: int) -> None:
        c = self.config
        widths = {
            "x": c.hidden,
            "h": c.hidden,
            "qkv": c.q_dim + 2 * c.kv_dim,
            "attention": c.q_dim,
            "ff": c.intermediate,
        }
        for name, width in widths.items():
            self.planner.replace(name, self.context.empty((rows, width), np.float32, what=name))
        self.planner.replace("tokens", self.context.empty((rows,), np.int32, what="tokens"))
        self._rows = rows

    def _room(self, m: int) -> None:
        """Make activations large enough for steps of ``m`` tokens."""
        if m > self._rows:
            self._plans.clear()  # first: what fails below must leave no plan on released tensors
            self._activations(next(size for size in TOKENS if m <= size))

    def _grow(self, positions: int) -> None:
        """Make KV cache and rotary table large enough."""
        if positions > self.capacity:
            self._plans.clear()  # as in _room
            self._cache.grow(positions, self.length)


def _weights(steps: Sequence[Step]) -> list[str]:
    """Names of the matrices that ``steps`` read."""
    return list(dict.fromkeys(s.tensors["w"] for s in steps if s.workload.op in MATRIX_OPS))
