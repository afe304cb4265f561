"""Workers: a trial may end them in any way, and costs no more than itself."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import clk_planted
from clk_cache import start_python
from clk_planted import how
from clk_pocl import a_device
from clkiln.errors import TuningError
from clkiln.kernels import SPECS
from clkiln.kernels.types import Config, Workload
from clkiln.runtime.device import Device
from clkiln.tuner import process as process_module
from clkiln.tuner.process import Worker

WORKLOAD = Workload.of("planted", m=5, n=37)
#: Workers that open no device, for what does not depend on one.
PUPPET = """
import os, sys, time
from clkiln.tuner.wire import receive, send
answers = os.fdopen(os.dup(1), "wb")
send(answers, {"ready": 1})
while (message := receive(sys.stdin.buffer)) is not None:
    config = message[0]["config"]
    if '"abort"' in config:
        print("LLVM ERROR: cannot select", file=sys.stderr)
        os.abort()
    if '"exit"' in config:
        os._exit(3)
    if '"sleep"' in config:
        time.sleep(60)
    status = "launch error" if '"launch"' in config else "ok"
    send(answers, {"status": status, "message": str(os.getpid()), "time": 1.0}, b"payload")
    if '"later"' in config:
        os._exit(4)
"""


@pytest.fixture(scope="module", autouse=True)
def planted() -> Iterator[None]:
    clk_planted.install()
    yield
    del SPECS["planted"]


@pytest.fixture(scope="module")
def device() -> Device:
    return a_device()


@pytest.fixture
def puppet() -> Iterator[Worker]:
    with Worker("driver", trial_limit=20, command=(sys.executable, "-c", PUPPET)) as worker:
        yield worker


def say(word: str) -> Config:
    return Config.of("buffer", SAY=word)


def test_answers_and_payloads_come_back(puppet: Worker) -> None:
    outcome = puppet.trial(WORKLOAD, say("hello"), None)
    assert (outcome.status, outcome.time, outcome.binary) == ("ok", 1.0, b"payload")
    assert puppet.trial(WORKLOAD, say("again"), 1.0).message == outcome.message
    assert puppet.restarts == 0


@pytest.mark.parametrize(
    ("word", "end"),
    [("abort", "SIGABRT: LLVM ERROR: cannot select"), ("exit", "exit code 3")],
)
def test_a_crash_says_how_it_ended(puppet: Worker, word: str, end: str) -> None:
    first = puppet.trial(WORKLOAD, say("hello"), None)
    crash = puppet.trial(WORKLOAD, say(word), None)
    assert (crash.status, crash.message, crash.binary) == ("crash", end, b"")
    after = puppet.trial(WORKLOAD, say("hello"), None)
    assert after.status == "ok" and after.message != first.message
    assert puppet.restarts == 1


def test_a_trial_that_takes_too_long_is_ended(puppet: Worker) -> None:
    puppet.trial_limit = 0.3
    start = time.monotonic()
    outcome = puppet.trial(WORKLOAD, say("sleep"), None, extra=0.2)
    assert outcome.status == "timeout" and "no answer within" in outcome.message
    assert 0.5 <= time.monotonic() - start < 15
    puppet.trial_limit = 20
    assert puppet.trial(WORKLOAD, say("hello"), None).status == "ok"


def test_what_failed_on_the_device_gets_no_successor(puppet: Worker) -> None:
    """A process that may be damaged runs no other trial."""
    first = puppet.trial(WORKLOAD, say("hello"), None)
    failed = puppet.trial(WORKLOAD, say("launch"), None)
    assert failed.status == "launch error" and failed.message == first.message
    assert puppet.trial(WORKLOAD, say("hello"), None).message != first.message


def test_a_death_between_trials_is_nobodys_fault(puppet: Worker) -> None:
    assert puppet.trial(WORKLOAD, say("later"), None).status == "ok"
    time.sleep(0.3)
    assert puppet.trial(WORKLOAD, say("hello"), None).status == "ok"


def test_an_interrupted_trial_is_not_answered_later(
    puppet: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in mid-trial: its late answer must not pass for the next one's."""
    first = puppet.trial(WORKLOAD, say("hello"), None)

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(puppet._answers, "get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            puppet.trial(WORKLOAD, say("launch"), None)
    after = puppet.trial(WORKLOAD, say("hello"), None)
    assert after.status == "ok" and after.message != first.message


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise SystemExit('no such device')", "could not open the device: .*no such device"),
        ("import time; time.sleep(60)", "could not open the device: no sign of life"),
    ],
)
def test_a_worker_that_does_not_start(
    script: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in script:
        monkeypatch.setattr(process_module, "START_LIMIT", 1.0)
        monkeypatch.setattr(process_module, "STOP_LIMIT", 0.1)
    with (
        Worker("driver", command=(sys.executable, "-c", script)) as worker,
        pytest.raises(TuningError, match=message),
    ):
        worker.trial(WORKLOAD, say("hello"), None)


def test_an_unknown_device_is_named() -> None:
    with Worker("no such driver") as worker, pytest.raises(TuningError, match="not there any more"):
        worker.trial(WORKLOAD, say("hello"), None)


def test_nothing_is_left_behind(puppet: Worker) -> None:
    puppet.trial(WORKLOAD, say("hello"), None)
    process, scratch = puppet._process, Path(puppet._scratch.name)
    assert process is not None and scratch.is_dir()
    puppet.__exit__()
    assert process.poll() is not None and not scratch.exists()


# --- on a device ----------------------------------------------------------------------------------


def test_a_kernel_that_takes_the_process_with_it(device: Device) -> None:
    """As it does on a CPU device, whose kernels run in the process itself."""
    with Worker(device.info.driver_key, command=clk_planted.WORKER) as worker:
        assert worker.trial(WORKLOAD, how("good"), None).status == "ok"
        crash = worker.trial(WORKLOAD, how("segfault"), None)
        assert crash.status == "crash" and crash.message.startswith("SIGSEGV")
        assert worker.trial(WORKLOAD, how("good"), None).status == "ok"
        assert worker.restarts == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the signal at the parent's death is Linux's")
def test_a_worker_ends_with_its_tuner(device: Device) -> None:
    """Even inside a kernel that never ends."""
    script = """
        import sys, threading
        sys.path.insert(0, sys.argv[1])
        import clk_planted
        from clk_planted import how
        from clkiln.kernels.types import Workload
        from clkiln.tuner.process import Worker
        worker = Worker(sys.argv[2], trial_limit=60, command=clk_planted.WORKER)
        workload = Workload.of("planted", m=5, n=37)
        worker.trial(workload, how("good"), None)
        print(worker._process.pid, flush=True)
        worker.trial(workload, how("endless"), None)
    """
    support = Path(clk_planted.__file__).parent
    tuner = start_python(textwrap.dedent(script), support, device.info.driver_key)
    assert tuner.stdout is not None
    worker = int(tuner.stdout.readline())
    time.sleep(0.5)
    os.kill(worker, 0)
    tuner.kill()
    tuner.communicate()
    for _ in range(100):
        if not is_running(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its tuner")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # whoever inherited it may take its time
