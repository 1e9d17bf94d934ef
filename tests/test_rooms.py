"""The rooms of the library and the arrows between them, as docs/architecture.md has them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# `undo --later solve` has the methods solve later edits again.
KNOT = ("stack", "methods")


def imported(node: ast.AST) -> Iterator[str]:
    """Modules that are imported anywhere below a node, except for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom) and child.module == "surgery":
            yield from (f"surgery.{name.name}" for name in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module
        elif isinstance(child, ast.Import):
            yield from (name.name for name in child.names)
        yield from imported(child)


def arrows() -> dict[str, set[str]]:
    """By room, the rooms it imports from."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "surgery").rglob("*.py"):
        room = file.relative_to(ROOT / "surgery").with_suffix("").parts[0]
        tree = ast.parse(file.read_text(encoding="utf-8"))
        rooms = (name.split(".")[1] for name in imported(tree) if name.startswith("surgery."))
        found.setdefault(room, set()).update(other for other in rooms if other != room)
    return found


def test_no_two_rooms_lead_to_each_other() -> None:
    left = arrows()
    assert KNOT[1] in left[KNOT[0]]  # else the picture in docs/architecture.md is to be changed
    left[KNOT[0]].discard(KNOT[1])
    while True:
        reached = set().union(*left.values())
        between = {r: others & left.keys() for r, others in left.items() if others and r in reached}
        if between == left:
            break
        left = between
    assert not left, f"these rooms import each other in a circle: {left}"


def test_the_library_knows_nothing_of_the_workbench() -> None:
    for file in (ROOT / "surgery").rglob("*.py"):
        names = imported(ast.parse(file.read_text(encoding="utf-8")))
        assert not [n for n in names if n.split(".")[0] in ("ui", "gradio", "tests")], file


def test_every_room_is_in_the_table() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder in (ROOT / "surgery").iterdir():
        if (folder / "__init__.py").is_file():
            assert f"`surgery/{folder.name}/`" in table, folder.name
