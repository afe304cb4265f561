"""Programs: from source or from a kept binary, with every compile counted."""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import BuildError, CacheMissError, DeviceError, LaunchError
from .context import Context
from .cubin import Linker, is_ptx
from .faults import message, try_device
from .opencl import cl
from .restrict import build_options, restricted

logger = logging.getLogger(__name__)

#: Raise it when a stored binary would mean something else than before.
BINARY_FORMAT = 1
#: Threads that link PTX into machine code, outside the interpreter's lock.
LINK_THREADS = 8
#: Turns off pyopencl's own cache, a pickle under a global lock; its types know no False.
NO_CACHE: Any = False


class Source(Protocol):
    """What is built: text with includes inlined, the kernel's name, options, a digest of all."""

    @property
    def text(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def digest(self) -> str: ...


class BinaryStore(Protocol):
    """Where binaries are kept between runs. It returns only what it has verified.

    ``keeps`` is False where nothing put in stays, as in a file that cannot be written.
    """

    @property
    def keeps(self) -> bool: ...
    def get_binaries(self, keys: Iterable[str]) -> dict[str, bytes]: ...
    def put_binary(self, key: str, payload: bytes, *, label: str, driver: str) -> None: ...


@dataclass
class ProgramCounts:
    """How programs came to be, and the seconds it took."""

    from_cache: int = 0
    compiled: int = 0
    seconds: float = 0.0
    compiled_labels: list[str] = field(default_factory=list)


class Program:
    """A built program with one kernel. ``label`` names operation, variant and parameters."""

    def __init__(self, context: Context, handle: cl.Program, source: Source, label: str) -> None:
        self.context, self.handle, self.name, self.label = context, handle, source.kernel, label
        self.source = source
        #: Set by whoever has seen a launch of it finish: only then is the binary complete.
        self.launched = False
        self._kernel: cl.Kernel | None = None

    def kernel(self) -> cl.Kernel:
        """The kernel object, made once. Raises :class:`~clkiln.errors.LaunchError`."""
        if self._kernel is None:
            with self.context.errors(f"{self.label}: making the kernel"):
                self._kernel = cl.Kernel(self.handle, self.name)
        return self._kernel

    def binary(self) -> bytes:
        """The driver's binary. Take it after the first launch: PoCL compiles again there."""
        with self.context.errors(f"{self.label}: reading the binary"):
            binaries: Any = self.handle.get_info(cl.program_info.BINARIES)
            return bytes(binaries[0])

    def work_group_limit(self) -> int:
        """The largest work-group that this compiled kernel can be launched with."""
        most = self.context.info.max_work_group_size
        return min(most, self._limit(cl.kernel_work_group_info.WORK_GROUP_SIZE))

    def local_memory(self) -> int:
        """Bytes of local memory that the compiled kernel takes, as the driver reports it."""
        return self._limit(cl.kernel_work_group_info.LOCAL_MEM_SIZE)

    def _limit(self, what: cl.kernel_work_group_info) -> int:
        with self.context.errors(f"{self.label}: asking for the compiled kernel's limits"):
            value: Any = self.kernel().get_work_group_info(what, self.context.device.handle)
            return int(value)


def program_key(driver_key: str, source: Source) -> str:
    """The key of a binary: everything that must be the same for it to be the same program."""
    return hashlib.sha256(f"{BINARY_FORMAT}\0{driver_key}\0{source.digest}".encode()).hexdigest()


class ProgramLoader:
    """Builds each source once per context, from its kept binary where there is one.

    ``require_cache`` makes a compile an error (:class:`~clkiln.errors.CacheMissError`).
    """

    def __init__(
        self, context: Context, store: BinaryStore | None = None, *, require_cache: bool = False
    ) -> None:
        self.context, self.store, self.require_cache = context, store, require_cache
        self.counts = ProgramCounts()
        self._programs: dict[str, Program] = {}
        self._binaries: dict[str, bytes] = {}
        #: Programs to keep, once launched: what was compiled, and what was loaded from PTX.
        self._fresh: dict[str, Program] = {}

    def key(self, source: Source) -> str:
        return program_key(self.context.info.driver_key, source)

    def prefetch(self, sources: Iterable[Source]) -> None:
        """Read the binaries of many sources from the store in one go."""
        if self.store is None:
            return
        start = time.perf_counter()
        missing = {self.key(s) for s in sources} - self._programs.keys() - self._binaries.keys()
        self._binaries |= self.store.get_binaries(missing)
        self.counts.seconds += time.perf_counter() - start

    def load(self, source: Source, label: str) -> Program:
        """The program of ``source``.

        Raises :class:`~clkiln.errors.BuildError`, or :class:`~clkiln.errors.DeviceError` where the
        device compiles nothing at all.
        """
        key = self.key(source)
        if key in self._programs:
            return self._programs[key]
        if key not in self._binaries:
            self.prefetch([source])
        start = time.perf_counter()
        binary = self._binaries.pop(key, None)
        program = None if binary is None else self._cached(binary, source, label)
        if binary is not None and program is not None:
            self.counts.from_cache += 1
            if is_ptx(binary):
                self._fresh[key] = program
        else:
            if self.require_cache:
                raise CacheMissError(f"{label}: no binary for it in the cache file")
            program = Program(self.context, _compile(self.context, source, label), source, label)
            self.counts.compiled += 1
            self.counts.compiled_labels.append(label)
            self._fresh[key] = program
        self._programs[key] = program
        self.counts.seconds += time.perf_counter() - start
        return program

    def keep_fresh(self) -> None:
        """Store the binaries of what was compiled and launched since the last call.

        PTX is stored as machine code, what came from the store as PTX included.
        """
        ready = {key: program for key, program in self._fresh.items() if program.launched}
        for key in ready:
            del self._fresh[key]
        if self.store is None or not ready or not self.store.keeps:
            return
        programs = list(ready.values())
        for key, program, binary in zip(ready, programs, self._binaries_of(programs), strict=True):
            driver = self.context.info.driver_key
            self.store.put_binary(key, binary, label=program.label, driver=driver)

    def _binaries_of(self, programs: Sequence[Program]) -> list[bytes]:
        """The binary of each program in the form that loads quickest."""
        binaries = [program.binary() for program in programs]
        if not any(map(is_ptx, binaries)):
            return binaries
        linker = Linker()
        try:
            with ThreadPoolExecutor(LINK_THREADS) as pool:
                linked = list(pool.map(linker.link, binaries))
        finally:
            linker.close()
        return [
            cubin if cubin is not None and self._loads(cubin, program) else binary
            for program, binary, cubin in zip(programs, binaries, linked, strict=True)
        ]

    def _loads(self, binary: bytes, program: Program) -> bool:
        """Whether the driver takes ``binary`` for ``program``: tried before it is kept."""
        try:
            self._from_binary(binary, program.source, program.label)
        except (cl.Error, LaunchError) as error:
            logger.debug("%s: the driver refused machine code: %s", program.label, error)
            return False
        return True

    def _cached(self, binary: bytes, source: Source, label: str) -> Program | None:
        try:
            return self._from_binary(binary, source, label)
        except (cl.Error, LaunchError) as error:
            logger.warning("%s: the driver refused its cached binary, compiling: %s", label, error)
            return None

    def _from_binary(self, binary: bytes, source: Source, label: str) -> Program:
        handle = cl.Program(self.context.handle, [self.context.device.handle], [binary])
        _build(handle, source, self.context.info.features)
        program = Program(self.context, handle, source, label)
        program.kernel()
        return program


def _compile(context: Context, source: Source, label: str) -> cl.Program:
    info = context.info
    try:
        handle = cl.Program(context.handle, restricted(source.text, info.limits.without))
        _build(handle, source, info.features)
        context.has_compiled = True
        return handle
    except cl.Error as error:
        if not context.has_compiled and (fault := try_device(context.device)):
            raise DeviceError(message(info, fault)) from error
        why = info.limits.because(*info.limits.without)
        raise BuildError(f"{label} does not compile on {info.name}{why}: {error}") from error


def _build(handle: cl.Program, source: Source, features: Iterable[str]) -> None:
    with warnings.catch_warnings():
        # Drivers chatter about successful builds; a failed one carries its log in the error.
        warnings.simplefilter("ignore")
        handle.build(options=build_options(source.options, features), cache_dir=NO_CACHE)
