"""Parameters that were tuned elsewhere are held against their reference before they are used.

The program that they make here was never run: another driver compiles it, or other sizes are
compiled in. It is built, launched on random data and compared with NumPy once, and the verdict is
kept in the cache file, so that later starts need not. A compiler that aborts takes the process with
it; so what is about to be tried is noted first, and a start that finds such a note uses other
parameters.
"""

from __future__ import annotations

from ..cache.store import Store
from ..errors import BuildError, OpenCLError, OutOfDeviceMemory
from ..harness.operation import Operation, label_of, source_of
from ..kernels import SPECS
from ..kernels.types import Config, Workload
from ..runtime.context import Context
from ..runtime.program import ProgramLoader
from .choose import Choice

RIGHT, BEGUN = "right", "begun"
#: A reference of more operations than this is computed for fewer tokens, then fewer positions: a
#: kernel takes both from its state buffer. Odd, so that no tile divides it.
MOST_FLOPS, FEW = 1 << 30, {"m": 37, "ctx": 509}


class Verifier:
    """Verdicts on choices for one device, from the cache file or by trying."""

    def __init__(self, context: Context, loader: ProgramLoader, store: Store, driver: str) -> None:
        self.context, self.loader, self.store, self.driver = context, loader, store, driver
        self._right: set[str] = set()

    def problem(self, choice: Choice) -> str | None:
        """What is wrong with the parameters of ``choice`` for its workload; None if nothing is."""
        fact, mark = _names(choice)
        verdicts = self.store.fact(fact, driver=self.driver)
        known = dict(verdicts) if isinstance(verdicts, dict) else {}
        verdict = known.get(mark)
        if verdict == RIGHT:
            return None
        if verdict is not None:
            return "a start that tried it did not end" if verdict == BEGUN else str(verdict)
        self._keep(fact, {**known, mark: BEGUN})
        try:
            problem, lasting = self._try(choice)
        except BaseException:
            self._keep(fact, known)  # interrupted, and no verdict
            raise
        if problem and not lasting:
            self._keep(fact, known)
        else:
            self._keep(fact, {**known, mark: problem or RIGHT})
        return problem

    def _try(self, choice: Choice) -> tuple[str | None, bool]:
        """What is wrong, and whether it would be the next time."""
        workload, config = choice.workload, choice.config
        source = source_of(workload, config)
        key = self.loader.key(source)
        if key in self._right:
            return None, True
        try:
            program = self.loader.load(source, label_of(workload, config))
            verdict = Operation(self.context, affordable(workload, config)).verify(program, config)
        except (OpenCLError, OutOfDeviceMemory) as error:
            return str(error), isinstance(error, BuildError)
        if not verdict.ok:
            return verdict.message, True
        self._right.add(key)
        return None, True

    def _keep(self, fact: str, verdicts: dict[str, str]) -> None:
        self.store.set_fact(fact, verdicts, driver=self.driver)


def _names(choice: Choice) -> tuple[str, str]:
    """The fact that keeps a workload's verdicts, and the entry of a choice in it."""
    digest = SPECS[choice.workload.op].digest()
    return f"verified {choice.workload}", f"{digest} {choice.config}"


def affordable(workload: Workload, config: Config) -> Workload:
    """``workload`` or, where its reference would take long, a smaller one of the same program."""
    spec, program = SPECS[workload.op], source_of(workload, config).digest
    sizes = dict(workload.items)
    for name, few in FEW.items():
        size = sizes.get(name)
        if not isinstance(size, int) or size <= few or spec.flops(workload) <= MOST_FLOPS:
            continue
        smaller = workload.replace(**{name: few})
        if source_of(smaller, config).digest == program:
            workload = smaller
    return workload
