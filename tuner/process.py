"""The tuner's end of a worker process: start it, ask it with a time limit, replace it."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import IO, Any, BinaryIO, cast

from ..errors import TuningError
from ..kernels.types import Config, Workload
from .trial import Outcome
from .wire import receive, send

#: Seconds for a worker to open its device, and the least that a trial may take.
START_LIMIT = 60.0
TRIAL_LIMIT = 30.0
#: Seconds for a process that closed its output to be gone.
STOP_LIMIT = 5.0
#: Outcomes after which nothing is wrong with the process and the device that produced them.
HARMLESS = ("ok", "constraint", "compile error")


class Worker:
    """A worker for one device. A trial that kills it costs that trial; the next starts another.

    So does a trial that failed while it ran: on a CPU it may have written over the worker's own
    data, and a GPU may refuse its context ever after. What comes next must not pay for that.

    Use as a context manager. Driver-side kernel caches are private to it, so that compile times
    are those of a compiler. ``command`` starts a worker, with the driver key as its last argument.
    """

    def __init__(
        self,
        driver_key: str,
        *,
        trial_limit: float = TRIAL_LIMIT,
        command: Sequence[str] = (sys.executable, "-m", "clkiln.tuner.worker"),
    ) -> None:
        self.driver_key, self.trial_limit, self.command = driver_key, trial_limit, command
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="clkiln-", ignore_cleanup_errors=True)
        self._log: IO[bytes] | None = None
        self._answers: queue.Queue[tuple[dict[str, Any], bytes] | None] = queue.Queue()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._scratch.cleanup()

    def trial(
        self,
        workload: Workload,
        config: Config,
        best: float | None,
        *,
        extra: float = 0.0,
        made: Mapping[Workload, Config] = MappingProxyType({}),
    ) -> Outcome:
        """Run one trial; a worker that dies or overruns gives ``crash`` or ``timeout``.

        ``extra`` seconds are granted on top of the limit, for large inputs. ``made`` has the
        configurations of the conversions that ``config`` needs. Raises
        :class:`~clkiln.errors.TuningError` where a new worker cannot open the device.
        """
        if self._process is not None and self._process.poll() is not None:
            self.stop()  # it died between trials, which is not the next one's fault
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None
        conversions = {str(each): str(how) for each, how in made.items()}
        task = {
            "workload": str(workload), "config": str(config), "best": best, "made": conversions,
        }  # fmt: skip
        try:
            send(cast(BinaryIO, process.stdin), task)
            answer = self._answers.get(timeout=self.trial_limit + extra)
        except BrokenPipeError:
            answer = None
        except queue.Empty:
            return self._lost("timeout", f"no answer within {self.trial_limit + extra:.0f} s")
        except BaseException:
            self.stop()  # else its answer would be taken for that of the next trial
            raise
        if answer is None:
            return self._lost("crash", self._last_words())
        fields, payload = answer
        if fields["status"] not in HARMLESS:
            self.stop()
        return Outcome(**fields, binary=payload)

    def stop(self) -> None:
        """Kill the worker, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, self._log):
            if stream is not None:
                # What was not flushed was for a process that is gone.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _start(self) -> None:
        env = {
            **os.environ,
            "PYOPENCL_NO_CACHE": "1",
            "POCL_CACHE_DIR": self._scratch.name,
            "CUDA_CACHE_DISABLE": "1",
        }
        self._log = open(os.path.join(self._scratch.name, "stderr"), "w+b")  # noqa: SIM115
        process = subprocess.Popen(
            [*self.command, self.driver_key],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=env,
            start_new_session=True,
        )  # fmt: skip
        self._process = process
        self._answers = queue.Queue()
        threading.Thread(
            target=_pump, args=(cast(BinaryIO, process.stdout), self._answers), daemon=True
        ).start()
        try:
            ready = self._answers.get(timeout=START_LIMIT)
        except queue.Empty:
            ready = None
        if ready is None:
            words = self._last_words()
            self.stop()
            raise TuningError(f"the tuning worker could not open the device: {words}")

    def _lost(self, status: str, message: str) -> Outcome:
        """The outcome of a trial that took its worker with it."""
        self.stop()
        self.restarts += 1
        return Outcome(status, message[:2000])

    def _last_words(self) -> str:
        """How a dead worker ended: its signal or exit code, and the end of what it printed."""
        process = self._process
        assert process is not None and self._log is not None
        try:
            code = process.wait(timeout=STOP_LIMIT)
        except subprocess.TimeoutExpired:
            return "no sign of life"
        self._log.seek(0)
        lines = self._log.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
        end = f": {lines[-1]}" if lines else ""
        name = f"exit code {code}" if code >= 0 else _signal_name(-code)
        return f"{name}{end}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _pump(stream: BinaryIO, answers: queue.Queue[tuple[dict[str, Any], bytes] | None]) -> None:
    """Move answers from a worker's output to a queue; None marks the end."""
    try:
        while (message := receive(stream)) is not None:
            answers.put(message)
    except (OSError, ValueError):
        pass  # the stream was closed by stop()
    answers.put(None)
