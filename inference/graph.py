"""A decoder as a list of steps: which operation on which tensors, for a number of tokens.

The same function serves ``tune`` (which workloads are there?) and ``run`` (what to launch?), so
the two can't disagree.

Llama, Qwen2 and Qwen3 differ only in what the configuration says (biases; a norm of each query and
key head; which elements the rotary embedding pairs). Definition: Touvron et al., "LLaMA" (2023),
section 2; grouped-query attention: Ainslie et al. (2023); normed queries and keys: Yang et al.,
"Qwen3 Technical Report" (2025), section 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from ..kernels.split import pieces
from ..kernels.types import DeviceLimits, Workload
from ..kernels.uses import Phase, Use, layout_groups
from .buckets import TOKENS, TUNED_CONTEXTS, context_bucket
from .config import ModelConfig
from .weights import piece_name

#: Decoded tokens and prefill passes of the typical request that the tuner optimises for.
DECODE_STEPS, PREFILL_STEPS = 256, 4


#: Columns up to which a norm is taken into the product behind it: each work-group then holds the
#: normed vector in its local memory, of which any device has 32 KiB.
NORMED_COLUMNS = 4096
#: Operations whose argument ``w`` is a matrix in a layout, and not a vector.
MATRIX_OPS = ("embedding", "gemm", "gemv")


class WeightTypes(Protocol):
    """Tells the dtype of a weight by the name that the graph gives it."""

    def dtype(self, name: str) -> str: ...


@dataclass(frozen=True)
class Step:
    """One launch. ``tensors`` maps the kernel's argument names (a weight's is ``w``) to tensors."""

    workload: Workload
    tensors: Mapping[str, str]


class Graph:
    """The steps of one model with one KV cache dtype, on a device with ``limits``.

    A matrix that is too large for the device is split (:mod:`..kernels.split`): each piece is a
    weight of its own, read by a launch of its own. Without limits nothing is.
    """

    def __init__(
        self, config: ModelConfig, weights: WeightTypes, kv: str, limits: DeviceLimits | None
    ) -> None:
        self.config, self.weights, self.kv, self.limits = config, weights, kv, limits
        self._pieces: dict[tuple[int, int, str, bool], list[tuple[int, int]]] = {}

    def body(self, m: int, ctx: int) -> Iterator[Step]:
        """From token ids to the residual stream ``x``, for ``m`` tokens and a context bucket.

        A bucket of contexts that does not hold the bucket of tokens is widened to do so.
        """
        for step in self._body(m, ctx):
            yield from self._split(step)

    def head(self) -> Iterator[Step]:
        """From row 0 of ``x`` to ``logits`` and the greedy ``pick``."""
        for step in self._head():
            yield from self._split(step)

    def of_context(self, m: int, ctx: int) -> Counter[Workload]:
        """What :meth:`body` launches for ``m`` tokens that is another for another context, and how
        often."""
        ctx = max(ctx, context_bucket(m))
        layers: dict[str, list[str]] = {}  # by what makes their attention differ
        for layer in (f"blk.{i}" for i in range(self.config.n_layers)):
            layers.setdefault(self.weights.dtype(f"{layer}.qkv"), []).append(layer)
        found: Counter[Workload] = Counter()
        for first, *others in layers.values():
            for step in self._attention(first, m, ctx):
                if "ctx" in dict(step.workload.items):
                    found[step.workload] += 1 + len(others)
        return found

    def pieces(self, step: Step) -> list[tuple[int, int]]:
        """The rows of a step's matrix that the device can hold at once; mostly all of them."""
        workload = step.workload
        n, k, dtype = workload.size("n"), workload.size("k"), workload.tag("w")
        if self.limits is None:
            return [(0, n)]
        key = n, k, dtype, workload.tag("fuse", "none") == "swiglu"
        if key not in self._pieces:
            self._pieces[key] = pieces(n, k, dtype, self.limits, paired=key[-1])
        return self._pieces[key]

    def _split(self, step: Step) -> Iterator[Step]:
        """A step as it is, or one for each piece of its matrix."""
        if step.workload.op not in MATRIX_OPS or len(rows := self.pieces(step)) == 1:
            yield step
            return
        n, name = step.workload.size("n"), step.tensors["w"]
        for start, stop in rows:
            own = {"w": piece_name(name, start, stop), "piece": f"piece {start}"}
            yield Step(step.workload.replace(n=stop - start, of=n), {**step.tensors, **own})

    def _body(self, m: int, ctx: int) -> Iterator[Step]:
        c, ctx = self.config, max(ctx, context_bucket(m))
        embedding = Workload.of(
            "embedding", n=c.vocab, k=c.hidden, m=m, w=self.weights.dtype("token_embd")
        )
        tokens = "pick" if m == 1 else "tokens"
        yield Step(embedding, {"w": "token_embd", "tokens": tokens, "y": "x"})
        for i in range(c.n_layers):
            yield from self._attention(f"blk.{i}", m, ctx)
            yield from self._feed_forward(f"blk.{i}", m)

    def _head(self) -> Iterator[Step]:
        c = self.config
        yield self._norm("output_norm", 1)
        name = "token_embd" if c.tied else "output"
        yield self._linear(name, 1, n=c.vocab, k=c.hidden, x="h", y="logits")
        yield Step(Workload.of("argmax", n=c.vocab), {"x": "logits", "out": "pick"})

    def _norm(self, name: str, m: int) -> Step:
        c = self.config
        workload = Workload.of("rmsnorm", d=c.hidden, m=m, eps=self._eps())
        return Step(workload, {"x": "x", "w": name, "y": "h"})

    def _eps(self) -> str:
        return f"{self.config.rms_eps:.9g}"

    def _linear(
        self, name: str, m: int, *, n: int, k: int, x: str, y: str, fuse: str = "none"
    ) -> Step:
        biases = {"qkv": self.config.qkv_bias, "attn_output": self.config.output_bias}
        biases |= dict.fromkeys(("gate_up", "ffn_down"), self.config.ffn_bias)
        bias = biases.get(name.rpartition(".")[2], False)
        items: dict[str, int | str] = {"n": n, "k": k, "w": self.weights.dtype(name), "fuse": fuse}
        items["bias"] = "yes" if bias else "no"
        tensors = {"w": name, "x": x, "y": y, "state": "state"}
        if bias:
            tensors["bias"] = f"{name}.bias"
        if m == 1:
            return Step(Workload.of("gemv", **items), tensors)
        return Step(Workload.of("gemm", **items, m=m), tensors)

    def _normed(
        self, norm: str, name: str, m: int, *, n: int, y: str, fuse: str = "none"
    ) -> Iterator[Step]:
        """A linear layer of the normed residual stream: for one token in a single launch."""
        c = self.config
        if m > 1 or c.hidden > NORMED_COLUMNS:
            yield self._norm(norm, m)
            yield self._linear(name, m, n=n, k=c.hidden, x="h", y=y, fuse=fuse)
            return
        step = self._linear(name, m, n=n, k=c.hidden, x="x", y=y, fuse=fuse)
        workload = step.workload.replace(norm="yes", eps=self._eps())
        yield Step(workload, {**step.tensors, "norm": norm})

    def _attention(self, layer: str, m: int, ctx: int) -> Iterator[Step]:
        c = self.config
        heads = {"heads": c.n_heads, "kv_heads": c.n_kv_heads, "head_dim": c.head_dim}
        caches = {"k_cache": f"{layer}.k_cache", "v_cache": f"{layer}.v_cache", "state": "state"}
        width = c.q_dim + 2 * c.kv_dim
        *before, qkv = self._normed(f"{layer}.attn_norm", f"{layer}.qkv", m, n=width, y="qkv")
        yield from before
        # Both rows of a pair have to be there: pieces may cut a head.
        if m == 1 and not c.qk_norm and len(self.pieces(qkv)) == 1:
            rotary: dict[str, int | str] = {
                "fuse": "qkv",
                "rope_dim": c.rope.dim,
                "kv": self.kv,
                **heads,
            }
            tensors = {**qkv.tensors, **caches, "table": "rope_table"}
            yield Step(qkv.workload.replace(**rotary), tensors)
        else:
            yield qkv
            yield self._rope(layer, m, ctx, caches)
        attention = Workload.of("attention_decode", **heads, kv=self.kv, ctx=ctx)
        if m > 1:
            attention = Workload.of("attention_prefill", **heads, kv=self.kv, ctx=ctx, m=m)
        yield Step(attention, {**caches, "qkv": "qkv", "out": "attention"})
        yield self._linear(
            f"{layer}.attn_output", m, n=c.hidden, k=c.q_dim, x="attention", y="x", fuse="add"
        )

    def _rope(self, layer: str, m: int, ctx: int, caches: Mapping[str, str]) -> Step:
        c = self.config
        items: dict[str, int | str] = {"m": m, "ctx": ctx, "kv": self.kv}
        items |= {"heads": c.n_heads, "kv_heads": c.n_kv_heads, "head_dim": c.head_dim}
        items |= {"rope_dim": c.rope.dim, "style": c.rope_style}
        tensors = {**caches, "table": "rope_table", "qkv": "qkv"}
        if c.qk_norm:
            items |= {"norm": "yes", "eps": self._eps()}
            tensors |= {f"{part}_norm": f"{layer}.attn_{part}_norm" for part in "qk"}
        return Step(Workload.of("rope", **items), tensors)

    def _feed_forward(self, layer: str, m: int) -> Iterator[Step]:
        c = self.config
        yield from self._normed(
            f"{layer}.ffn_norm", f"{layer}.gate_up", m, n=c.intermediate, y="ff", fuse="swiglu"
        )
        yield self._linear(
            f"{layer}.ffn_down", m, n=c.hidden, k=c.intermediate, x="ff", y="x", fuse="add"
        )


def uses(graph: Graph, context: int) -> list[Use]:
    """Every workload that a model launches, for the tuner; ``context`` is the model's limit."""
    contexts = {c: s for c, s in TUNED_CONTEXTS.items() if c <= context_bucket(context)}
    found: dict[Workload, Use] = {}
    readers: list[tuple[Workload, str]] = []

    def add(phase: Phase, steps_a_request: float, m: int, reached: Mapping[int, float]) -> None:
        for place, (ctx, share) in enumerate(reached.items()):
            if place:  # of what the first context did not have
                counts = graph.of_context(m, ctx)
            else:
                steps = [*graph.body(m, ctx), *(graph.head() if m == 1 else ())]
                counts = Counter(step.workload for step in steps)
                readers.extend(
                    (step.workload, step.tensors["w"])
                    for step in steps
                    if step.workload.op in MATRIX_OPS
                )
            for workload, count in counts.items():
                use = Use(workload, phase, count, steps_a_request * share)
                found.setdefault(workload, use)

    add("decode", DECODE_STEPS, 1, contexts)
    for m in TOKENS:
        # The last chunk of a long prompt meets a long context; a short prompt is all there is.
        reached = {ctx: s for ctx, s in contexts.items() if ctx >= m} or {context_bucket(m): 1.0}
        last = None if m == TOKENS[-1] else 1
        add("prefill", PREFILL_STEPS, m, dict(list(reached.items())[:last]))
    groups = layout_groups(readers)
    return [replace(use, group=groups.get(use.workload)) for use in found.values()]
