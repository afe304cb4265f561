"""A file that somebody else could have written is not used; one of this user or of root is."""

from __future__ import annotations

import ast
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import clk_cache as kit
from clk_given import as_root, posix
from clkiln import trust
from clkiln.cache.store import Store
from clkiln.cache.verify import verify
from clkiln.errors import CacheError

ROOT = Path(__file__).resolve().parents[2]
#: A user and a group that own nothing here, nobody's in particular.
OTHER = 54321


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "x.sqlite").write_bytes(kit.filled())
    for step in (folder.parent, folder, folder / "x.sqlite"):
        step.chmod(0o700)
    return folder / "x.sqlite"


def _is_used(path: Path) -> bool:
    """Whether a start takes programs from the file; all ways of opening it must agree."""
    warnings = kit.Warnings()
    with Store.open_or_memory(path, warnings.append) as store:
        used = store.get_binaries(kit.BINARIES) == kit.BINARIES
        assert used == store.persistent
        store.set_fact("new", 1)  # works in any case
    assert len(warnings) == (0 if used else 1)
    for openers in (Store.open, Store.open_copy, lambda p: Store.open(p, write=False)):
        if used:
            openers(path).close()
        else:
            with pytest.raises(CacheError, match="is not used, as"):
                openers(path)
    if not used:
        with pytest.raises(CacheError, match="is not used, as"):
            verify(path)
        assert "is not used, as" in warnings[0] and str(path) in warnings[0]
    return used


def _world_file(path: Path) -> Path:
    path.chmod(0o666)
    return path


def _world_folder(path: Path) -> Path:
    path.parent.chmod(0o777)
    return path


def _world_parent(path: Path) -> Path:
    path.parent.parent.chmod(0o777)
    return path


def _sticky_folder(path: Path) -> Path:
    path.parent.chmod(0o1777)  # others could put a journal beside the file
    return path


def _link_to_world(path: Path) -> Path:
    path.parent.chmod(0o777)
    link = path.parent.parent / "link.sqlite"
    link.symlink_to(path)
    return link


def _link_through_world(path: Path) -> Path:
    # The link is safe, and so is what it leads to now; the folder that it goes through is not.
    (path.parents[1] / "open").mkdir()
    (path.parents[1] / "open" / "folder").symlink_to(path.parent)
    (path.parents[1] / "open").chmod(0o777)
    link = path.parents[1] / "link.sqlite"
    link.symlink_to("open/../open/folder/x.sqlite")
    return link


@posix
@pytest.mark.parametrize(
    "spoil",
    [
        _world_file,
        _world_folder,
        _world_parent,
        _sticky_folder,
        _link_to_world,
        _link_through_world,
    ],
)
def test_what_everybody_can_write_is_not_used(path: Path, spoil: Callable[[Path], Path]) -> None:
    before = path.read_bytes()
    assert _is_used(path)
    path.write_bytes(before)
    assert not _is_used(spoil(path))
    assert path.read_bytes() == before


@posix
def test_the_warning_says_how_to_mend_it(path: Path) -> None:
    path.chmod(0o622)
    warnings = kit.Warnings()
    Store.open_or_memory(path, warnings.append).close()
    [command] = [text.split("chmod ")[1].split(";")[0] for text in warnings]
    assert os.system(f"chmod {command}") == 0
    assert _is_used(path)


@posix
def test_what_only_others_can_read_is_used(path: Path) -> None:
    path.chmod(0o644)
    path.parent.chmod(0o755)
    path.parent.parent.chmod(0o1777)  # as /tmp is
    link = path.parents[1] / "link.sqlite"
    link.symlink_to("b/x.sqlite")
    assert _is_used(path) and _is_used(link)


@posix
def test_a_new_file_is_not_made_where_others_can_write(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert not _is_used(tmp_path / "open" / "x.sqlite")
    assert not _is_used(tmp_path / "open" / "new" / "x.sqlite")
    assert list((tmp_path / "open").iterdir()) == []
    (tmp_path / "open").chmod(0o1777)
    assert not _is_used(tmp_path / "open" / "x.sqlite")
    with Store.open(tmp_path / "open" / "new" / "x.sqlite"):
        pass  # nobody else can write there


@posix
def test_what_is_made_is_for_the_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Store.open(tmp_path / "a" / "b" / "x.sqlite") as store:
            store._connection.execute("BEGIN IMMEDIATE")
            store._connection.execute("INSERT INTO facts VALUES ('a', '', '1', '')")
            found = [tmp_path / "a", *(tmp_path / "a").rglob("*")]
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in found}
            store._connection.execute("ROLLBACK")
    finally:
        os.umask(before)
    assert modes == {"a": 0o700, "b": 0o700, "x.sqlite": 0o600, "x.sqlite-journal": 0o600}


@as_root
@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("mode", [0o700, 0o1777])
def test_what_belongs_to_another_user_is_not_used(path: Path, step: int, mode: int) -> None:
    owned = [path, *path.parents][step]
    os.chown(owned, OTHER, 0)
    owned.chmod(mode)
    assert not _is_used(path)


@as_root
def test_a_link_of_another_user_is_not_followed(path: Path) -> None:
    link = path.parents[1] / "link.sqlite"
    path.parents[1].chmod(0o1777)
    link.symlink_to(path)
    assert _is_used(link)
    os.lchown(link, OTHER, OTHER)
    assert not _is_used(link) and _is_used(path)


@as_root
@pytest.mark.parametrize("group", [0, OTHER])
def test_what_a_group_can_write(path: Path, group: int) -> None:
    os.chown(path.parent, 0, group)
    path.parent.chmod(0o770)
    assert _is_used(path) == (group == 0)


@as_root
@pytest.mark.parametrize("error", [errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_where_there_are_no_extended_attributes(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """There are no access lists then; where they cannot be read nobody knows."""

    def listxattr(path: Path) -> list[str]:
        raise OSError(error, os.strerror(error), str(path))

    path.chmod(0o660)
    assert _is_used(path)
    monkeypatch.setattr(os, "listxattr", listxattr)
    if error != errno.EIO:
        assert _is_used(path)
    else:
        with pytest.raises(CacheError, match="could not be opened"):
            Store.open(path)


@as_root
def test_what_root_owns_is_used_by_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file shipped with a device, or made while a container was built.
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    assert _is_used(path)
    os.chown(path, OTHER, OTHER)
    assert _is_used(path)
    os.chown(path, OTHER + 1, OTHER)
    assert not _is_used(path)


@as_root
def test_a_group_of_the_user_alone_is_the_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd

    members: list[str] = []
    user = pwd.struct_passwd(("ada", "x", OTHER, OTHER, "", "/", "/bin/sh"))
    group = grp.struct_group(("ada", "x", OTHER, members))
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: group)
    os.chown(path, OTHER, OTHER)
    path.chmod(0o660)
    assert _is_used(path)
    members += ["ada"]
    assert _is_used(path)
    members += ["eve"]
    assert not _is_used(path)


@as_root
def test_a_sandbox_sees_the_systems_folders_as_nobodys(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(path.parents[1], OTHER, 0)
    assert not _is_used(path)
    monkeypatch.setattr(trust, "_outside", lambda: OTHER)
    assert _is_used(path)
    os.chown(path.parent, OTHER, 0)  # whoever that is could put a journal beside the file
    assert not _is_used(path)


def test_elsewhere_nothing_is_checked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0o666)
    # pathlib asks os.name, too, so the module gets a name of its own.
    monkeypatch.setattr(trust, "_POSIX", False)
    trust.check(path)
    assert _is_used(path)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").symlink_to("y.sqlite")
    (tmp_path / "y.sqlite").symlink_to("x.sqlite")
    with pytest.raises(CacheError, match="could not be opened"):
        Store.open(tmp_path / "x.sqlite")


#: What turns data into code.
MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}


def test_nothing_that_is_read_is_executed() -> None:
    """No pickle and no eval, in any room."""
    found = []
    for file in ROOT.rglob("*.py"):
        room = file.relative_to(ROOT).parts[0]
        if room in ("tests", "benchmarks", "examples", "build") or room.startswith("."):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names} & MODULES
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]} & MODULES
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id} & CALLS
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                names = {node.arg}
            found += [f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} {n}" for n in names]
    assert found == []
