"""One launch of a plan at a time: run on what it really gets, repeated, compared with NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from ..errors import OpenCLError
from ..harness.compare import Verdict, compare
from ..harness.operation import poison
from ..kernels.types import Array
from .findings import Fault, Kind
from .launch_view import POSITIONAL, LaunchView
from .plan import BoundStep

Outputs = dict[str, Array]

#: A relative change of the last two bits of a float32, and how many times what it does to a result
#: a kernel may be off: it rounds more often than once. But never further off than ``MOST``.
LAST_BITS, MARGIN, MOST = 2.0**-22, 8.0, 0.05


@dataclass(frozen=True)
class Seen:
    """What came of a launch: ``error`` is the worst of its repeats, beside what was ``allowed``;
    None if none was compared."""

    fault: Fault | None
    error: float | None = None
    allowed: float = 0.0


class LaunchFailed(Exception):
    """The driver refused a launch, or it failed; nothing behind it can be believed."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class Trial:
    """Runs one launch ``repeat`` times on the same inputs, and leaves the right result behind it.

    So whatever follows gets what it should, and a fault is that of the launch that made it.
    """

    def __init__(self, bound: BoundStep, view: LaunchView, repeat: int) -> None:
        self.bound, self.view, self.repeat = bound, view, repeat
        self.starts = {name: view.content(name) for name in view.outputs}

    def run(self, must_compare: bool) -> Seen:
        """Raises :class:`LaunchFailed`."""
        view = self.view
        inputs = view.inputs()
        results: list[Outputs] = []
        turns: list[int] = []
        for turn in range(self.repeat):
            raw, problem = self._once(again=turn > 0)
            if problem:
                return self._wrong(inputs, Verdict(False, float("inf"), problem))
            place = next((i for i, known in enumerate(results) if _same(known, raw)), len(results))
            if place == len(results):
                results.append(raw)
            turns.append(place)
        finite = all(np.isfinite(a).all() for raw in results for a in raw.values())
        if not must_compare and finite and len(results) == 1:
            return Seen(None)
        verdicts, reference = self._judged(results, inputs, view.sampled)
        if view.sampled is not None and not all(verdict.ok for verdict, _ in verdicts):
            verdicts, reference = self._judged(results, inputs, None)
        right = next((i for i, (verdict, _) in enumerate(verdicts) if verdict.ok), None)
        if right is None:
            view.write(reference)
        elif right != turns[-1]:
            view.write(results[right])
        worst, allowed = max(verdicts, key=lambda found: found[0].error)
        return Seen(self._fault([verdict for verdict, _ in verdicts], turns), worst.error, allowed)

    def _once(self, *, again: bool) -> tuple[Outputs, str]:
        """The outputs of a launch, and what it wrote that it must leave alone, if anything."""
        view = self.view
        for name in view.outputs:
            tensor = view.tensor(name)
            if name in view.pure:
                tensor.write(poison(tensor.dtype, view.count(name)))
            elif again:
                tensor.write(self.starts[name])
        self._launch()
        raw: Outputs = {}
        for name in view.outputs:
            whole, count = view.content(name), view.count(name)
            # Rows of an image behind those of the step may be written with them: nobody reads them.
            own = view.outputs[name].memory != "image2d"
            if own and whole[count:].tobytes() != self.starts[name][count:].tobytes():
                return raw, f"{name}: written past its end"
            raw[name] = view.shaped(name, whole[:count])
            if name in POSITIONAL:
                old = raw[name][: view.start]
                if old.tobytes() != self.starts[name][: old.size].tobytes():
                    return raw, f"{name}: earlier positions were changed"
        return raw, ""

    def _launch(self) -> None:
        launch, view = self.bound.launch, self.view
        try:
            launch.enqueue(self.bound.geometry(view.end - view.start))
            launch.program.context.finish()
        except OpenCLError as error:
            raise LaunchFailed(self._as_fault("failed", str(error), None)) from error
        launch.program.launched = True

    def _judged(
        self,
        results: Sequence[Outputs],
        inputs: Mapping[str, Array],
        tokens: Sequence[int] | None,
    ) -> tuple[list[tuple[Verdict, float]], Outputs]:
        """A verdict on each result beside what was allowed, and the reference, of ``tokens``."""
        view = self.view
        reference = view.reference(inputs, tokens)
        wanted = self._own(reference)
        got = [self._outputs(raw, tokens) for raw in results]
        allowed = dict.fromkeys(wanted, view.spec.tolerance(view.workload))
        verdicts = [_verdict(each, wanted, allowed) for each in got]
        if any(not found.ok and isfinite(found.error) for found, _ in verdicts):
            allowed = self._widened(allowed, inputs, wanted, tokens)
            verdicts = [_verdict(each, wanted, allowed) for each in got]
        return verdicts, reference

    def _outputs(self, raw: Mapping[str, Array], tokens: Sequence[int] | None) -> Outputs:
        outputs = self.view.spec.outputs(self.view.workload, raw)
        if tokens is not None:
            return {name: array[tokens] for name, array in outputs.items()}
        return self._own(outputs)

    def _own(self, outputs: Mapping[str, Array]) -> Outputs:
        return own_positions(outputs, self.view.start)

    def _widened(
        self,
        allowed: Mapping[str, float],
        inputs: Mapping[str, Array],
        wanted: Mapping[str, Array],
        tokens: Sequence[int] | None,
    ) -> dict[str, float]:
        """What is allowed, but no less than float32 can't avoid on these inputs.

        A tolerance is for inputs as a spec's random ones are. Where a result hangs on the last bits
        of real ones (a softmax of scores in the hundreds, a sum that cancels), as many bits are
        lost by any kernel: that is measured by changing the inputs in their last two bits. What has
        to be equal stays so.
        """
        rng = np.random.default_rng(0)
        near = {
            name: array * (1 + LAST_BITS * rng.standard_normal(array.shape))
            if np.issubdtype(array.dtype, np.floating)
            else array
            for name, array in inputs.items()
        }
        moved, found = self._own(self.view.reference(near, tokens)), dict(allowed)
        for name, array in wanted.items():
            if allowed[name] and np.issubdtype(array.dtype, np.floating):
                change = np.linalg.norm(moved[name] - array) / (np.linalg.norm(array) or 1.0)
                if np.isfinite(change):
                    found[name] = max(allowed[name], min(MARGIN * float(change), MOST))
        return found

    def _wrong(self, inputs: Mapping[str, Array], verdict: Verdict) -> Seen:
        for name in self.view.outputs:
            self.view.tensor(name).write(self.starts[name])
        self.view.write(self.view.reference(inputs))
        return Seen(self._as_fault("wrong", verdict.message, verdict.error), verdict.error)

    def _fault(self, verdicts: Sequence[Verdict], turns: Sequence[int]) -> Fault | None:
        """What the results of all turns, ``turns`` being each one's place in ``verdicts``, say."""
        wrong = [turn for turn in turns if not verdicts[turn].ok]
        if not wrong and len(verdicts) == 1:
            return None
        worst = max(verdicts, key=lambda verdict: (not verdict.ok, verdict.error))
        if len(wrong) == len(turns) and len(verdicts) == 1:
            return self._as_fault("wrong", worst.message, worst.error)
        count = f"{len(wrong)} of {len(turns)} times wrong"
        text = f"{len(verdicts)} different results in {len(turns)} repeats on the same inputs, "
        text += f"{count}: {worst.message}" if wrong else "all of them near the reference"
        return self._as_fault("same", text, worst.error)

    def _as_fault(self, kind: Kind, message: str, error: float | None) -> Fault:
        error = error if error is not None and isfinite(error) else None
        return Fault(self.bound.workload, self.bound.config, self.view.place, kind, message, error)


def _verdict(
    got: Mapping[str, Array], wanted: Mapping[str, Array], allowed: Mapping[str, float]
) -> tuple[Verdict, float]:
    """The verdict on the output nearest to its bound, or furthest past it, and the bound."""
    verdicts = [
        (compare({name: got[name]}, {name: array}, allowed[name]), allowed[name])
        for name, array in wanted.items()
    ]
    return max(verdicts, key=lambda found: (not found[0].ok, found[0].error / (found[1] or 1.0)))


def own_positions(outputs: Mapping[str, Array], start: int) -> Outputs:
    """Of caches only the positions of a step from ``start`` on: others would dilute their error."""
    return {n: a[start:] if n in POSITIONAL else a for n, a in outputs.items()}


def _same(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    """Whether the bits are the same; comparing numbers would not tell a zero from its negative."""
    return all(a[name].tobytes() == b[name].tobytes() for name in a)
