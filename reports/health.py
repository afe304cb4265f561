"""How sound a cache file is, and what in it nothing needs any more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import schema
from ..cache.rows import BestRow, BinaryRow, DriverRow, TrialRow
from ..cache.verify import Contents, verify
from ..harness.keys import key_of, read_choice, read_config, split_label
from ..kernels import SPECS
from ..kernels.types import Workload
from ..runtime.identity import split_key
from ..units import readable
from .text import plural

if TYPE_CHECKING:
    from ..runtime.device import DeviceInfo


@dataclass(frozen=True)
class Finding:
    """Something to know of a file, and what to do; ``damage`` if something in it is lost."""

    what: str
    todo: str
    damage: bool = False


@dataclass(frozen=True)
class Health:
    """A file's content, what was found, and why programs in it are obsolete, by key."""

    contents: Contents
    findings: tuple[Finding, ...]
    obsolete: Mapping[str, str]

    @property
    def damaged(self) -> bool:
        return any(finding.damage for finding in self.findings)


def examine(path: Path, present: Sequence[DeviceInfo]) -> Health:
    """Verify the file at ``path`` against today's kernels and the devices that are ``present``.

    Raises as :func:`~clkiln.cache.verify.verify`. Nothing is written.
    """
    contents = verify(path)
    obsolete = obsolete_programs(contents.binaries, contents.drivers, present)
    findings = (
        *_damage(contents),
        *_parameters(contents),
        *_outdated(contents, present),
        *_obsolete(contents.binaries, obsolete),
    )
    return Health(contents, findings, obsolete)


def obsolete_programs(
    binaries: Sequence[BinaryRow], drivers: Sequence[DriverRow], present: Sequence[DeviceInfo]
) -> dict[str, str]:
    """Programs that no start can take any more: key -> why.

    Those of a kernel that has changed since, and those of a driver whose device is there under
    another driver. A device that is not there at all may come back, so its programs stay.
    """
    replaced = replaced_drivers(drivers, present)
    found: dict[str, str] = {}
    for row in binaries:
        workload, config = split_label(row.label)
        if row.driver in replaced:
            found[row.key] = "its driver was replaced"
        # A label that tells nothing is no reason to delete what it names.
        elif read_config(config) and key_of(row.driver, workload, config) != row.key:
            found[row.key] = "its kernel has changed"
    return found


def replaced_drivers(
    drivers: Sequence[DriverRow], present: Sequence[DeviceInfo]
) -> dict[str, DriverRow]:
    """Drivers, by key, that are not there while their device is, under another one.

    Under limits it is the driver of the device itself that counts.
    """
    keys = {info.driver_key for info in present}
    devices = {(info.platform, info.name) for info in present}
    return {
        row.driver: row
        for row in drivers
        if split_key(row.driver)[0] not in keys
        and (row.info.get("platform"), row.info.get("name")) in devices
    }


def _damage(contents: Contents) -> Iterator[Finding]:
    path = contents.path
    if contents.structure:
        count = len(contents.structure)
        yield Finding(
            f"its pages are damaged ({plural(count, 'fault')}, first: {contents.structure[0]})",
            f"what can be read is used; to start afresh: rm {path}",
            damage=True,
        )
    for table, count in contents.unreadable.items():
        yield Finding(
            f"{plural(count, 'row')} of the table {table} make no sense",
            "they are ignored; clkiln tune MODEL works out anew what is missing",
            damage=True,
        )
    if contents.damaged:
        count = len(contents.damaged)
        yield Finding(
            f"{plural(count, 'program')} of {count + len(contents.binaries)} damaged, first: "
            f"{contents.damaged[0].label or '(no label)'}",
            f"never used; drop them: clkiln cache prune --cache {path}",
            damage=True,
        )


def _parameters(contents: Contents) -> Iterator[Finding]:
    """Choices and trials against today's kernels."""
    rows: list[BestRow | TrialRow] = [*contents.best, *contents.trials]
    verdicts = [(_verdict(row), row) for row in rows]
    counts = Counter(verdict for verdict, _ in verdicts)
    if counts["bad"]:
        first = next(row for verdict, row in verdicts if verdict == "bad")
        yield Finding(
            f"{plural(counts['bad'], 'row')} of parameters make no sense, first: "
            f"{first.workload} {first.config}",
            "they are ignored; clkiln tune MODEL --force works them out anew",
            damage=True,
        )
    if counts["unknown"]:
        yield Finding(
            f"{plural(counts['unknown'], 'row')} of kernels that this clkiln does not have",
            "nothing to do: they are ignored",
        )
    if counts["stale choices"] or counts["stale trials"]:
        yield Finding(
            f"{plural(counts['stale choices'], 'choice')} and "
            f"{plural(counts['stale trials'], 'trial')} of kernels that have changed since",
            "clkiln tune MODEL searches the new ones",
        )


def _verdict(row: BestRow | TrialRow) -> str:
    """What a row's parameters are worth: fine, bad, of an unknown kernel, or of an older one."""
    try:
        Workload.parse(row.workload)
    except ValueError:
        return "bad"
    if read_config(row.config) is None:
        return "bad"
    spec = SPECS.get(row.workload.split(" ")[0])
    if spec is None:
        return "unknown"
    if isinstance(row, TrialRow):
        return "fine" if spec.digest() == row.digest else "stale trials"
    if spec.digest() != row.digest:
        return "stale choices"
    positive = math.isfinite(row.time) and row.time > 0
    return "fine" if positive and read_choice(row.workload, row.config) else "bad"


def _outdated(contents: Contents, present: Sequence[DeviceInfo]) -> Iterator[Finding]:
    if contents.schema < schema.latest():
        yield Finding(
            f"it has the schema {contents.schema}, today's is {schema.latest()}",
            "nothing to do: the next clkiln that writes it brings it up to date",
        )
    replaced = replaced_drivers(contents.drivers, present)
    keys = {info.driver_key for info in present}
    for row in contents.drivers:
        name = f"{row.info.get('name', '?')}, driver {row.info.get('driver_version', '?')}"
        if row.driver in replaced:
            yield Finding(
                f"the driver of {name} was replaced",
                "its parameters are starting points: run clkiln tune MODEL once more",
            )
        elif split_key(row.driver)[0] not in keys:
            yield Finding(f"{name} is not there now", "nothing to do: its rows wait for it")


def _obsolete(binaries: Sequence[BinaryRow], obsolete: Mapping[str, str]) -> Iterator[Finding]:
    if obsolete:
        size = readable(sum(row.size for row in binaries if row.key in obsolete))
        yield Finding(
            f"{plural(len(obsolete), 'program')} ({size}) that nothing can use any more",
            "clkiln cache prune deletes them",
        )
