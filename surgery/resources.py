"""Where the data files that ship with the project are: in a checkout, or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from surgery.errors import SurgeryError

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder below which `benchmarks/`, `edits/` and `weights/` lie.

    In a checkout that is its top; in an installed wheel it is the package's `_data`, which the
    build fills with the same tree.
    """
    top = _PACKAGE.parent
    return top if (top / "pyproject.toml").is_file() else _PACKAGE / "_data"


def path(*parts: str) -> Path:
    """A shipped file or folder, such as `path("benchmarks", "suites", "quick.yaml")`.

    Raises:
        SurgeryError: there is none of that name.
    """
    found = root().joinpath(*parts)
    if not found.exists():
        raise SurgeryError(f"{'/'.join(parts)} does not come with this installation ({found})")
    return found
