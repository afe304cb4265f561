"""Every command, script and file of README and docs, followed to the letter."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from clk_docs import Reader, blocks, commands_on_path
from clkiln.cli.app import COMMANDS, app
from clkiln.runtime.features import FEATURES
from clkiln.runtime.limits import FIGURES, PROFILES, WITHOUT, Limits

ROOT = Path(__file__).resolve().parents[2]
LONG = pytest.mark.long
#: Pages whose commands need nothing but a model, in the order in which people read them.
PAGES = (
    "README.md", "docs/getting-started.md", "docs/cache.md", "docs/limits.md",
    "docs/tuning-guide.md", "docs/checking.md",
)  # fmt: skip
#: Pages whose commands take minutes.
SLOW = ("getting-started.md", "tuning-guide.md", "checking.md")


def test_a_kernel_is_added_as_the_page_says(tmp_path: Path) -> None:
    tree = tmp_path / "clkiln"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    environment = commands_on_path(
        tmp_path, PYTHONPATH=str(tmp_path), CLKILN_CACHE_DIR=str(tmp_path / "cache")
    )
    reader = Reader(tree, environment)
    found = list(blocks(ROOT / "docs/adding-a-kernel.md"))
    assert {block.language for block in found} == {"c", "python", "diff", "console"}
    for block in found:
        reader.follow(block)


def test_troubleshooting_quotes_messages_that_exist() -> None:
    """Each heading's pieces between dots stand in one string of the source, in that order."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(quoted) > 15
    spoken = [text for file in sources() for text in strings(ast.parse(file.read_text("utf-8")))]
    unknown = [heading for heading in quoted if not any(says(text, heading) for text in spoken)]
    assert unknown == []


def sources() -> Iterator[Path]:
    for file in ROOT.rglob("*.py"):
        room = file.relative_to(ROOT).parts[0]
        if room not in ("tests", "benchmarks", "examples", "build") and not room.startswith("."):
            yield file


def strings(tree: ast.AST) -> Iterator[str]:
    """Every string of a module; the holes of an f-string as a NUL."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
            yield "".join(map(str, parts))


def says(text: str, heading: str) -> bool:
    pieces = (re.escape(piece.strip()) for piece in heading.split("…"))
    return re.search(".*".join(pieces), text, re.DOTALL) is not None


@pytest.fixture(scope="module")
def reader(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Somebody with an empty folder, a model that was pulled, and little time to tune."""
    folder = tmp_path_factory.mktemp("reader")
    models = folder / "models"
    models.mkdir()
    (models / "SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(model_file)
    (folder / "pocl").mkdir()
    environment = commands_on_path(
        folder,
        CLKILN_CACHE_DIR=str(folder / "cache"),
        CLKILN_MODELS_DIR=str(models),
        POCL_CACHE_DIR=str(folder / "pocl"),
        CLKILN_TUNE_OPTIONS="--budget 4s",
        CLKILN_MEMORY_BUDGET="2G",
    )
    return Reader(folder, environment)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=LONG if page.endswith(SLOW) else ()) for page in PAGES],
)
def test_commands_do_what_the_page_says(page: str, reader: Reader) -> None:
    """In the order of the pages: what one tuned, the next one uses."""
    found = list(blocks(ROOT / page))
    assert found
    for block in found:
        reader.follow(block)


def test_the_table_of_limits_is_what_there_is() -> None:
    """Every profile has its row, and the file on the page is one, with every field."""
    text = (ROOT / "docs/limits.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    assert re.findall(r"`([^`]+)`", " ".join(rows)) == [*PROFILES]
    [example] = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert json.loads(example).keys() == {*FIGURES, WITHOUT}
    assert Limits.of(json.loads(example), "the page")
    [features] = re.findall(r"Features are\n(.*?);", text, re.DOTALL)
    assert re.findall(r"`(\w+)`", features) == [*FEATURES]


def test_every_page_is_followed() -> None:
    """A command in a page that nobody runs is one that nobody keeps true."""
    pages = {str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")} | {"README.md"}
    with_commands = {p for p in pages if list(blocks(ROOT / p))}
    assert with_commands == {*PAGES, "docs/adding-a-kernel.md"}


def test_the_table_of_commands_is_the_command_line() -> None:
    """Every command has a row, and every option that a row names is one."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `clkiln (\w+)[^|]*\|(.*)\|$", text.replace(r"\|", "/"), re.MULTILINE)
    assert {name for name, _ in rows} == {*COMMANDS}
    for name, row in rows:
        command = app.get_command(click.Context(app), name)
        assert command is not None
        found = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
        options = {o for c in found for p in c.params for o in (*p.opts, *p.secondary_opts)}
        named = set(
            re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", " ".join(re.findall(r"`([^`]+)`", row)))
        )
        assert named <= options, f"{name}: {named - options}"
