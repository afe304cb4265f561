"""The models folder: what lies in it, and removing from it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError
from .catalog import CATALOG, models_dir
from .hub import HubName, choose, forget, is_model, missing_weights, pulled_files
from .wheel import note_of


@dataclass(frozen=True)
class Installed:
    """A model by the name that commands take. ``size`` in bytes; ``complete`` is False where only
    a part was fetched."""

    name: str
    path: Path
    size: int
    complete: bool = True


def installed() -> list[Installed]:
    """Every model below the models folder: the catalog's, the hub's, and .gguf files that somebody
    put there, which go by their paths."""
    folder = models_dir()
    found = list(_top_level(folder))
    if folder.is_dir():
        for owner in sorted(folder.iterdir()):
            if owner.is_dir() and not owner.name.startswith("."):
                for repository in sorted(owner.iterdir()):
                    if repository.is_dir():
                        found += _repository(f"{owner.name}/{repository.name}", repository)
    return found


def _top_level(folder: Path) -> Iterator[Installed]:
    names = {entry.file_name: entry for entry in CATALOG.values()}
    for path in sorted(folder.glob("*.gguf")):
        entry = names.get(path.name)
        complete = entry is None or path.stat().st_size == entry.size
        yield Installed(entry.name if entry else str(path), path, bytes_of(path), complete)


def _repository(name: str, folder: Path) -> Iterator[Installed]:
    files = pulled_files(folder)
    ggufs = [file for file in files if is_model(file)]
    for file in ggufs:
        path = folder / file
        yield Installed(name if len(ggufs) == 1 else f"{name}:{file}", path, bytes_of(path))
    if "config.json" in files:
        complete = not _lacks_weights(folder)
        # Where there are both, the name means the .gguf file.
        yield Installed(str(folder) if ggufs else name, folder, bytes_of(folder), complete)
    elif not ggufs:
        yield Installed(name, folder, bytes_of(folder), complete=False)


def _lacks_weights(folder: Path) -> bool:
    try:
        return bool(missing_weights(folder))
    except ModelError:
        return True


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def belongings(name: str) -> list[Path]:
    """What :func:`remove` would delete for a name: its file with notes, or a repository's folder.

    Only what lies below the models folder: a catalog entry, ``owner/name`` (all of it),
    ``owner/name:file``, or the path of a .gguf file there. Raises ``ModelError`` for anything else.
    """
    folder = models_dir()
    if name in CATALOG:
        return _there(name, [path := folder / CATALOG[name].file_name, note_of(path)])
    hub = HubName.parse(name)
    if hub is not None and hub.folder(folder).is_dir():
        if not hub.file:
            return [hub.folder(folder)]
        matching = [i.path for i in installed() if i.path.is_file() and _is(i.path, hub, folder)]
        if len(matching) == 1:
            return matching
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        if path.absolute().parent != folder.absolute():
            raise ModelError(f"{name} does not lie in {folder}: clkiln removes only what is there")
        return _there(name, [path, note_of(path)])
    raise ModelError(f"there is no model {name} in {folder}; clkiln models lists what is there")


def _is(path: Path, hub: HubName, folder: Path) -> bool:
    """Whether ``hub`` means the file at ``path``."""
    own = path.is_relative_to(hub.folder(folder))
    relative = path.relative_to(hub.folder(folder)).as_posix() if own else ""
    if not own:
        return False
    with contextlib.suppress(ModelError):
        return choose(hub, [relative]) == relative
    return False


def _there(name: str, paths: list[Path]) -> list[Path]:
    found = [path for path in paths if path.is_file()]
    if not found:
        raise ModelError(f"model {name} is not here; clkiln models lists what is")
    return found


def remove(name: str) -> int:
    """Delete a model with its notes and the folders that are empty then; returns the bytes freed.

    Raises ``ModelError`` as :func:`belongings`, and for what cannot be deleted.
    """
    folder, freed = models_dir(), 0
    for path in belongings(name):
        size = bytes_of(path)
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise ModelError(f"cannot delete {path}: {error.strerror or error}") from error
        freed += size
        freed += forget(path, folder)
        _drop_empty(path.parent, folder)
    return freed


def _drop_empty(path: Path, until: Path) -> None:
    with contextlib.suppress(OSError):
        while path != until and path.is_relative_to(until):
            path.rmdir()
            path = path.parent
