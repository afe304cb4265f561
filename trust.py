"""Whether somebody else could have written a file whose content ends up in a driver.

That is a cache file with its programs, and a list of driver libraries. A digest in the file does
not tell: who can write the file can write a digest that fits. So what counts is who may write it,
its folder, and each folder and link on the way there. It lies outside the rooms because two that
do not know each other ask.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import CacheError

_POSIX = os.name == "posix"
#: As many links as Linux follows.
_MOST_LINKS = 40
#: Root, and its group.
_ROOT = 0
#: What file systems and kernels without extended attributes, access lists included, answer.
_NO_ATTRIBUTES = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class _Step:
    """A folder or link on the way to a file, or the file."""

    path: Path
    status: os.stat_result

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_sticky(self) -> bool:
        """Whether others may add to it, and not replace what is another's."""
        return bool(self.status.st_mode & stat.S_ISVTX)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.status.st_mode)


def check(path: Path) -> None:
    """Raise :class:`CacheError` if others than this user and root could have written ``path``.

    ``path`` need not exist: then it is about the folders that do. Each folder on the way, links
    followed one by one, has to belong to this user or to root and be writable by nobody else. A
    folder with the sticky bit, such as ``/tmp``, may lie on the way; the file itself may not lie in
    one, for whoever can put a journal beside a file makes SQLite write it. A group whose only
    member is the user counts as the user. On Windows nothing is checked: access lists there keep a
    user's folders to the user.

    Raises ``OSError`` for a way that cannot be followed.
    """
    if not _POSIX:
        return
    steps = list(_steps(path))
    last = steps[-1]
    folder = last if last.is_folder else _Step(last.path.parent, os.lstat(last.path.parent))
    for step in steps:
        _check_owner(step, on_the_way=step.is_folder and step.path != folder.path)
        if not (step.is_link or (step.is_folder and step.is_sticky)):
            _check_writers(step)
    # Folders that are not there yet will be made for this user alone.
    if (os.path.lexists(path) or path.parent.exists()) and _written_by(folder):
        raise CacheError(
            f"is not used, as others can put files beside it in {folder.path}: "
            "choose a file in a folder of your own"
        )


def make_folders(folder: Path) -> None:
    """Make ``folder`` and what is missing above it, for this user alone, whatever the umask."""
    if not folder.exists():
        make_folders(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def _steps(path: Path) -> Iterator[_Step]:
    """What opening ``path`` goes through, from the root on, as far as it exists."""
    rest = [*reversed(path.absolute().parts)]
    here = Path(rest.pop())
    yield _Step(here, os.lstat(here))
    links = 0
    while rest:
        name = rest.pop()
        if name == "..":
            here = here.parent
            continue
        step = here / name
        try:
            found = _Step(step, os.lstat(step))
        except FileNotFoundError:
            return
        yield found
        if not found.is_link:
            here = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = Path(os.readlink(step))
        rest.extend(reversed(target.parts))
        if target.is_absolute():
            here = Path(rest.pop())


def _check_owner(step: _Step, *, on_the_way: bool) -> None:
    owner = step.status.st_uid
    if owner in (os.geteuid(), _ROOT) or (on_the_way and owner == _outside()):
        return
    raise CacheError(
        f"is not used, as {step.path} belongs to {_name(owner)}, who could change it: make it "
        f"yours (sudo chown {os.geteuid()} {shlex.quote(str(step.path))}), or name another file"
    )


def _check_writers(step: _Step) -> None:
    others = _written_by(step)
    if others:
        raise CacheError(
            f"is not used, as {others} can write {step.path}: if nobody did, "
            f"chmod go-w {shlex.quote(str(step.path))}"
        )


def _written_by(step: _Step) -> str:
    """Who else may write what a step leads to; empty if nobody."""
    mode = step.status.st_mode
    if mode & stat.S_IWOTH:
        return "everybody"
    if mode & stat.S_IWGRP and not _own_group(step):
        return f"the group {step.status.st_gid}"
    return ""


def _own_group(step: _Step) -> bool:
    """Whether the owning group holds nobody but the user, or root.

    Many systems give each user a group of the same name and let it write by default.
    """
    import grp
    import pwd

    group = step.status.st_gid
    # Where an access list names others, the bits of the group are theirs, too.
    if _has_access_list(step.path):
        return False
    if group == _ROOT:
        return True
    try:
        user, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    alone = set(entry.gr_mem) <= {user.pw_name}
    return alone and group == user.pw_gid and entry.gr_name == user.pw_name


def _has_access_list(path: Path) -> bool:
    if not hasattr(os, "listxattr"):
        return False
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return False
        raise


def _outside() -> int | None:
    """The user that stands for all whom a user namespace does not know; None outside of one.

    In a sandbox or a rootless container the system's own folders seem to be that user's.
    """
    try:
        mapped = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if mapped == ["0", "0", "4294967295"] else overflow


def _name(owner: int) -> str:
    import pwd

    try:
        return f"the user {pwd.getpwuid(owner).pw_name}"
    except KeyError:
        return f"the user {owner}"
