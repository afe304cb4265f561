"""Fetching models from the hub with huggingface_hub, which is imported when it is needed.

huggingface_hub knows the hub's addresses, tokens and errors, and reads a file from any byte on. Its
own download throws away what a killed process had fetched, so the partial file is kept here: beside
its target, named after the content's digest, and continued by the next call. What arrives is
verified against the digest that the hub announced before it gets its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from .. import __version__
from ..errors import ModelError
from . import hub
from .files import INDEX
from .hub import HubName, Unreachable
from .wheel import Progress


@dataclass(frozen=True)
class Remote:
    """A file of a repository: size in bytes, and the digest of its content.

    Large files have a SHA-256 (``sha256:...``); of others the hub tells git's object name, the
    SHA-1 over a header and the content (``git:...``).
    """

    path: str
    size: int
    digest: str


def pull(name: HubName, models: Path, revision: str | None, progress: Progress | None) -> Path:
    """Fetch the files that ``name`` means into ``models``; what is there and unchanged stays.

    Raises :class:`~.hub.Unreachable` where the hub does not answer, ``ModelError`` for what it
    does not have or not give, for a full disk, and for content that is not what was announced.
    """
    source = _Source(name, revision)
    folder = name.folder(models)
    listing = source.listing()
    with _own(folder, name):
        chosen = hub.choose(name, listing)
        target = _Target(folder, source, listing, progress)
        if chosen is not None:
            target.fetch([chosen])
            return folder / chosen
        files = hub.directory_files(listing)
        if INDEX in files:
            target.fetch([INDEX])
            files += hub.shards(folder / INDEX)
        target.fetch(files)
        return folder


class _Source:
    """A repository of the hub at one commit."""

    def __init__(self, name: HubName, revision: str | None) -> None:
        try:
            self.library = _library()
        except ImportError:
            raise ModelError(
                f"fetching {name} from the hub needs huggingface_hub: pip install 'clkiln[hub]'"
            ) from None
        self.name, self.revision = name, revision
        # As huggingface_hub reads it, but when it is asked and not when it was first imported.
        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        self.commit = ""

    def listing(self) -> dict[str, Remote]:
        """Every file of the repository; the commit is fixed from here on."""
        api = self.library.HfApi(
            endpoint=self.endpoint, library_name="clkiln", library_version=__version__
        )
        with self._errors():
            found = api.model_info(
                self.name.repo, revision=self.revision, files_metadata=True, timeout=30
            )
        self.commit = found.sha or self.revision or "main"
        files = (_remote(sibling) for sibling in found.siblings or ())
        return {file.path: file for file in files if file is not None}

    def read(self, file: Remote, into: BinaryIO, start: int) -> None:
        """Write the file's bytes from ``start`` on behind those that ``into`` has."""
        url = self.library.hf_hub_url(
            self.name.repo, file.path, revision=self.commit, endpoint=self.endpoint
        )
        headers = _library("utils").build_hf_headers(
            library_name="clkiln", library_version=__version__
        )
        get = _library("file_download").http_get
        with self._errors(), _no_bars():
            get(url, into, resume_size=start, headers=headers, expected_size=file.size)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what goes wrong into one clear line."""
        utils, repo, where = _library("utils"), self.name.repo, self.endpoint
        try:
            yield
        except utils.GatedRepoError as error:
            raise ModelError(
                f"{repo} is gated: ask for access at {where}/{repo}, then set HF_TOKEN"
            ) from error
        except utils.RevisionNotFoundError as error:
            raise ModelError(f"{repo} has no revision {self.revision!r}") from error
        except utils.RepositoryNotFoundError as error:
            raise ModelError(
                f"the hub ({where}) has no model {repo}, or it is private: then set HF_TOKEN"
            ) from error
        except utils.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            text = f"the hub ({where}) refuses {repo}: {_first_line(error)}"
            raise (Unreachable if status is None or status >= 500 else ModelError)(text) from error
        except utils.HFValidationError as error:
            raise ModelError(f"{repo} is no name of a model: {_first_line(error)}") from error
        except OSError as error:
            if error.errno is not None and not isinstance(error, ConnectionError):
                raise  # the disk's: told by whoever knows the folder
            raise self._unreachable(error) from error
        except ModelError:
            raise
        except Exception as error:
            # Which library speaks HTTP, and so which exceptions it raises, differs by version.
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"cannot fetch {self.name} from the hub ({self.endpoint}): {_first_line(error)}; "
            "is there a network?"
        )


def _library(module: str = "") -> Any:
    """huggingface_hub or a module of it. Its types differ from version to version: Any."""
    return import_module(f"huggingface_hub.{module}" if module else "huggingface_hub")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _no_bars() -> Iterator[None]:
    """Progress is ours to show."""
    utils = _library("utils")
    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _remote(sibling: Any) -> Remote | None:
    """A file of the listing; None for one whose path would lead out of the folder."""
    path = PurePosixPath(sibling.rfilename)
    if path.is_absolute() or ".." in path.parts or "\\" in sibling.rfilename or ":" in str(path):
        return None
    sha256 = sibling.lfs.get("sha256") if sibling.lfs else None
    digest = f"sha256:{sha256}" if sha256 else f"git:{sibling.blob_id}"
    return Remote(str(path), sibling.size or 0, digest)


class _Target:
    """A repository's folder here."""

    def __init__(
        self,
        folder: Path,
        source: _Source,
        listing: dict[str, Remote],
        progress: Progress | None,
    ) -> None:
        self.folder, self.source, self.listing = folder, source, listing
        self.progress: Progress = progress or (lambda what, done, total: None)

    def fetch(self, paths: list[str]) -> None:
        """Fetch those of ``paths`` that are not there as the hub has them."""
        for path in paths:
            if path not in self.listing:
                raise ModelError(f"{self.source.name.repo} lacks its own file {path}")
        note = hub.read_note(self.folder)
        missing = [self.listing[path] for path in paths if not self._has(self.listing[path], note)]
        self._check_room(missing)
        total, done = sum(file.size for file in missing), 0
        for file in missing:
            self._fetch(file, self._telling(file, done, total))
            done += file.size
            note[file.path] = file.digest
            hub.write_note(self.folder, note)

    def _telling(self, file: Remote, before: int, total: int) -> Callable[[int], None]:
        return lambda done: self.progress(file.path, before + done, total)

    def _has(self, file: Remote, note: dict[str, str]) -> bool:
        path = self.folder / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if note.get(file.path) != file.digest:
            if _digest(path, file) != file.digest:
                return False
            note[file.path] = file.digest
        return True

    def _check_room(self, files: list[Remote]) -> None:
        there = sum(p.stat().st_size for f in files if (p := self._partial(f)).is_file())
        needed = sum(file.size for file in files) - there
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            from ..units import readable

            raise ModelError(
                f"{self.source.name} takes {readable(needed)} more and {self.folder} has "
                f"{readable(free)} free; CLKILN_MODELS_DIR chooses another folder"
            )

    def _partial(self, file: Remote) -> Path:
        target = self.folder / file.path
        return target.with_name(f".{target.name}.{file.digest[-16:]}{hub.PARTIAL}")

    def _fetch(self, file: Remote, progress: Callable[[int], None]) -> None:
        target, partial = self.folder / file.path, self._partial(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "ab") as behind:
            start = behind.tell()
        if start > file.size:
            start = 0
        with open(partial, "r+b") as data:
            data.truncate(start)
            data.seek(start)
            progress(start)
            if start < file.size:
                self.source.read(file, cast(BinaryIO, _Counting(data, progress)), start)
            data.flush()
            os.fsync(data.fileno())
        if partial.stat().st_size != file.size or _digest(partial, file) != file.digest:
            partial.unlink()
            raise ModelError(
                f"{file.path} of {self.source.name.repo} arrived damaged; nothing of it was kept, "
                "try again"
            )
        os.replace(partial, target)
        for stale in hub.partials(target):
            stale.unlink(missing_ok=True)  # of an older revision, never to be finished


class _Counting:
    """A file that tells how far it is; what reads from the hub may rewind it."""

    def __init__(self, data: BinaryIO, progress: Callable[[int], None]) -> None:
        self._data, self._progress = data, progress

    def write(self, piece: bytes) -> int:
        written = self._data.write(piece)
        self._progress(self._data.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def _digest(path: Path, like: Remote) -> str:
    """The digest of a file, of the kind that ``like`` has."""
    kind = like.digest.partition(":")[0]
    if kind == "sha256":
        with open(path, "rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    # Git's name of a blob: SHA-1 over "blob", the size, NUL and the content.
    sha1 = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    sha1.update(path.read_bytes())
    return f"git:{sha1.hexdigest()}"


@contextmanager
def _own(folder: Path, name: HubName) -> Iterator[None]:
    """The folder for this process alone; its disk's errors as one clear line."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ModelError(f"another process is fetching {name.repo} right now") from None
    except OSError as error:
        raise ModelError(
            f"cannot keep {name} in {folder}: {error.strerror or error}; what has arrived stays "
            "for the next try, and CLKILN_MODELS_DIR chooses another folder"
        ) from error
    finally:
        # Folders of a model that was not found are nothing to keep.
        with contextlib.suppress(OSError):
            (folder / ".lock").unlink()
        for empty in (folder, folder.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()
