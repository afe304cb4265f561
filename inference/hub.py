"""Models of the hub by name: which files a name means, and where they lie once they are pulled.

A repository ``owner/name`` lies in the folder of that name below the models folder, its files under
their own paths. Here nothing needs a network; :mod:`.hub_download` fetches.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from ..errors import ModelError, UnsupportedModel
from .files import INDEX, MAX_JSON, WEIGHTS, parse_object, read_bytes
from .wheel import Progress

#: Quantisations in the order in which they are taken where a repository has several: the usual
#: compromise of size and quality first, then what is nearest to it.
PREFERRED = (
    "Q4_K_M", "Q4_0", "Q8_0", "Q4_K_S", "Q4_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K",
    "IQ4_NL", "Q3_K_M", "Q3_K_L", "Q3_K_S", "Q2_K", "BF16", "F16", "F32",
)  # fmt: skip

#: What a directory of safetensors needs beside the weights.
CONFIGURATION = frozenset(
    "config.json generation_config.json tokenizer.json tokenizer_config.json tokenizer.model "
    "special_tokens_map.json added_tokens.json vocab.json merges.txt chat_template.json "
    "chat_template.jinja".split()
)

_NAME = re.compile(
    r"(?:(?:https://)?(?:hf\.co|huggingface\.co)/)?"
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?::(?P<file>[^:\\]+))?",
    re.ASCII,
)
_SHARD = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)
#: In a repository's folder: what was pulled, so that a look at the hub tells what has changed.
NOTE = ".pulled.json"
#: How the hidden files end that a pull has not finished.
PARTIAL = ".partial"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


class Unreachable(ModelError):
    """The hub does not answer: no network, or its own trouble."""


@dataclass(frozen=True)
class HubName:
    """``owner/name``, and ``file``: the path of a file in it, a quantisation such as ``Q8_0``, or
    empty where the repository says enough."""

    repo: str
    file: str = ""

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """None for a text that is no such name; ``folder/model.gguf`` is a path."""
        match = _NAME.fullmatch(text)
        if match is None or match["repo"].endswith((".gguf", ".safetensors")):
            return None
        return cls(match["repo"], match["file"] or "")

    def __str__(self) -> str:
        return f"{self.repo}:{self.file}" if self.file else self.repo

    def folder(self, models: Path) -> Path:
        return models / self.repo


def find(name: HubName, models: Path) -> Path | None:
    """The file or directory that was pulled for ``name``; None if there is none.

    Raises ``ModelError`` where several files could be meant, or where weights are missing.
    """
    folder = name.folder(models)
    files = pulled_files(folder)
    if not files or (name.file and not _named(name, files)):
        return None
    chosen = choose(name, files)
    if chosen is not None:
        return folder / chosen
    missing = missing_weights(folder)
    if missing:
        raise ModelError(
            f"{name} is not here in full ({missing[0]} is missing); fetch the rest with: "
            f"clkiln pull {name}"
        )
    return folder


def pulled_files(folder: Path) -> list[str]:
    """Paths of the models' files below a repository's folder; what is half-fetched is hidden."""
    if not folder.is_dir():
        return []
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(p.as_posix() for p in paths if not any(s.startswith(".") for s in p.parts))


def choose(name: HubName, files: Collection[str]) -> str | None:
    """The .gguf file of ``files`` that ``name`` means; None for the directory of safetensors.

    By :attr:`HubName.file` the file of that path, or the only one of that quantisation. Without it
    the only .gguf file, else the first of :data:`PREFERRED`. Files in parts, projectors of images
    and importance matrices are no choice. Raises ``ModelError`` where nothing or much fits.
    """
    usable = [file for file in files if is_model(file)]
    if name.file:
        found = _named(name, files)
        if not found:
            raise ModelError(f"{name.repo} has no {name.file}{_instead(name.file, usable)}")
        if _PART.search(found[0]):
            raise UnsupportedModel(f"{name}: a model in several parts; clkiln reads single files")
    elif usable:
        found = usable if len(usable) == 1 else _preferred(usable)
    elif "config.json" in files and (WEIGHTS in files or INDEX in files):
        return None
    else:
        parts = any(_PART.search(file) for file in files)
        lacks = "only files in several parts" if parts else "no .gguf file and no safetensors"
        raise UnsupportedModel(f"{name.repo} has {lacks} that clkiln could read")
    if len(found) != 1:
        raise ModelError(
            f"{name} may mean several files; name one: clkiln pull {name.repo}:FILE, of "
            f"{', '.join(found or usable)}"
        )
    return found[0]


def _named(name: HubName, files: Iterable[str]) -> list[str]:
    """The files that ``name.file`` may mean: of that path, or of that quantisation."""
    every = [file for file in files if file.lower().endswith(".gguf")]
    if name.file in every:
        return [name.file]
    return [file for file in every if is_model(file) and _has_tag(file, name.file)]


def is_model(file: str) -> bool:
    """Whether the file of that path is a whole model in GGUF, by its name."""
    plain = PurePosixPath(file).name.lower()
    aside = plain.startswith("mmproj") or "imatrix" in plain or _PART.search(plain)
    return plain.endswith(".gguf") and not aside


def _has_tag(file: str, tag: str) -> bool:
    """Whether ``tag`` stands in the file's name as a word: ``x-Q4_0.gguf`` is no ``Q4_0_4_4``."""
    stem = PurePosixPath(file).name[: -len(".gguf")]
    return re.search(rf"(?:^|[-._]){re.escape(tag)}(?:$|[-.])", stem, re.IGNORECASE) is not None


def _preferred(usable: list[str]) -> list[str]:
    for tag in PREFERRED:
        found = [file for file in usable if _has_tag(file, tag)]
        if found:
            return found
    return []


def _instead(wanted: str, usable: list[str]) -> str:
    if not usable:
        return ": it has no .gguf file"
    close = get_close_matches(wanted, usable, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; it has {', '.join(usable)}"


def missing_weights(folder: Path) -> list[str]:
    """Weight files that a directory of safetensors should hold and does not."""
    if not (folder / INDEX).is_file():
        wanted = [WEIGHTS]
    else:
        wanted = [WEIGHTS] if (folder / WEIGHTS).is_file() else shards(folder / INDEX)
    return [file for file in wanted if not (folder / file).is_file()]


def shards(index: Path) -> list[str]:
    """The weight files that an index names. Raises ``ModelError`` for one that makes no sense."""
    named = parse_object(read_bytes(index, MAX_JSON) or b"", str(index)).get("weight_map")
    files = set(named.values()) if isinstance(named, dict) else set()
    if not files or not all(isinstance(f, str) and _SHARD.fullmatch(f) for f in files):
        raise ModelError(f"{index} is damaged: it names no weight files; delete it and pull again")
    return sorted(files)


def directory_files(files: Collection[str]) -> list[str]:
    """What of a repository's files makes a directory of safetensors; shards of an index that is
    among them have to be added."""
    weights = WEIGHTS if WEIGHTS in files else INDEX
    return [*sorted(CONFIGURATION.intersection(files)), weights]


def partials(target: Path) -> list[Path]:
    """What was fetched of ``target`` so far, of any revision."""
    start = f".{target.name}."
    files = target.parent.iterdir() if target.parent.is_dir() else ()
    return [f for f in files if f.name.startswith(start) and f.name.endswith(PARTIAL)]


def read_note(folder: Path) -> dict[str, str]:
    """What was pulled into a repository's folder: file -> digest; empty if nobody knows."""
    try:
        note = json.loads((folder / NOTE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in note.items()} if isinstance(note, dict) else {}


def write_note(folder: Path, note: Mapping[str, str]) -> None:
    # Only a short cut for the next look; the files themselves are in place.
    with contextlib.suppress(OSError):
        scratch = folder / f"{NOTE}{PARTIAL}"
        scratch.write_text(json.dumps(note, indent=1) + "\n", "utf-8")
        os.replace(scratch, folder / NOTE)


def forget(path: Path, models: Path) -> int:
    """Drop what is kept beside a file of a repository that is gone now; returns the bytes."""
    parts = path.relative_to(models).parts if path.is_relative_to(models) else ()
    if len(parts) < 3:
        return 0
    folder, freed = models.joinpath(*parts[:2]), 0
    for partial in partials(path):
        freed += partial.stat().st_size
        partial.unlink(missing_ok=True)
    note = read_note(folder)
    if note.pop("/".join(parts[2:]), None) is not None:
        write_note(folder, note)
    if not note and not pulled_files(folder):
        (folder / NOTE).unlink(missing_ok=True)
    return freed


def pull(name: HubName, models: Path, revision: str | None, progress: Progress | None) -> Path:
    """Fetch what ``name`` means and is not there yet; see :func:`.hub_download.pull`."""
    from .hub_download import pull as fetch

    return fetch(name, models, revision, progress)
