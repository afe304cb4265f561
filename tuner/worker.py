"""The worker process: runs trials for the tuner, and may crash or hang in its place.

``python -m clkiln.tuner.worker DRIVER_KEY`` reads trials from standard input and answers on
standard output until the input ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import asdict
from typing import Any, BinaryIO

from ..errors import ClkilnError, DeviceError
from ..kernels.types import Config, Workload
from ..runtime.context import Context
from ..runtime.device import Device
from ..runtime.pretend import find_device
from .trial import Bench, Outcome
from .wire import receive, send

_PR_SET_PDEATHSIG = 1


def main(driver_key: str) -> None:
    """Serve trials on the device with this driver key."""
    answers = _private_stdout()
    _die_with_parent()
    with Context(_device(driver_key), profiling=True) as context:
        bench = Bench(context)
        send(answers, {"ready": os.getpid()})
        while (message := receive(sys.stdin.buffer)) is not None:
            outcome = _serve(bench, message[0])
            fields = asdict(outcome)
            payload = fields.pop("binary")
            send(answers, fields, payload)


def _serve(bench: Bench, task: dict[str, Any]) -> Outcome:
    workload, config = Workload.parse(task["workload"]), Config.parse(task["config"])
    made = {Workload.parse(each): Config.parse(how) for each, how in task["made"].items()}
    try:
        return bench.trial(workload, config, task["best"], made)
    except DeviceError:
        raise  # no trial's fault: the process ends with it
    except ClkilnError as error:
        return Outcome("launch error", str(error)[:2000])


def _device(driver_key: str) -> Device:
    """The device with this key, under the limits that are a part of it."""
    device = find_device(driver_key)
    if device is None:
        raise DeviceError("the device to tune is not there any more")
    return device


def _private_stdout() -> BinaryIO:
    """Keep the real standard output for answers; what drivers print goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _die_with_parent() -> None:
    """On Linux: end with the tuner, even inside a kernel that never ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tuner's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
