"""The rules of the house: arrows point down and not in circles, files and functions are short."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# What the files of a folder may import besides each other.
ALLOWED = {
    "misc": set(),
    "net": {"misc"},
    "voc12": {"misc"},
    "step": {"misc", "net", "voc12"},
    "deeplab": {"misc", "net", "voc12"},
    "wsol": {"misc", "net", "voc12"},
    "run_sample": {"misc", "net", "voc12", "step"},
}
LONGEST_FILE = 450  # lines
LONGEST_FUNCTION = 50


def sources() -> list[Path]:
    """The files of the product."""
    folders = [REPOSITORY / name for name in ALLOWED if name != "run_sample"]
    return [REPOSITORY / "run_sample.py", *(p for f in folders for p in sorted(f.rglob("*.py")))]


def shown(path: Path) -> str:
    """A file as a person names it."""
    return str(path.relative_to(REPOSITORY))


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, at its top or inside a function."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(name: str) -> Path | None:
    """The file of ours that a dotted name leads to; None for other packages."""
    parts = name.split(".")
    while parts:
        place = REPOSITORY.joinpath(*parts)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
        parts.pop()
    return None


@cache
def targets(path: Path) -> frozenset[Path]:
    """The files of ours that a file imports."""
    found = (file_of(name) for name in imported(path))
    return frozenset(target for target in found if target is not None and target != path)


def room(path: Path) -> str:
    """The folder at the top that a file lies in."""
    return path.relative_to(REPOSITORY).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sources(), ids=shown)
def test_arrows_point_down(path: Path) -> None:
    rooms = {room(target) for target in targets(path)} - {room(path)}
    assert rooms <= ALLOWED[room(path)]


def test_nothing_is_imported_in_circles() -> None:
    open_files: list[Path] = []
    done: set[Path] = set()

    def visit(path: Path) -> None:
        if path in open_files:
            circle = [*open_files[open_files.index(path) :], path]
            pytest.fail(" -> ".join(map(shown, circle)))
        if path in done:
            return
        open_files.append(path)
        for target in sorted(targets(path)):
            visit(target)
        done.add(open_files.pop())

    for path in sources():
        visit(path)


@pytest.mark.parametrize("path", sources(), ids=shown)
def test_no_arrow_is_hidden(path: Path) -> None:
    names = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    assert not names & {"import_module", "__import__"}


@pytest.mark.parametrize("path", sources(), ids=shown)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    functions = (n for n in ast.walk(tree_of(path)) if isinstance(n, ast.FunctionDef))
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}
