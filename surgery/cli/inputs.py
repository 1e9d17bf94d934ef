"""What commands share: arguments, and checks of what they name, made before any long work begins."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from surgery.spec import EditSpec


def suite_arguments(parser: argparse.ArgumentParser) -> None:
    """Which suite is measured, and where its files lie."""
    parser.add_argument(
        "--suite", metavar="NAME", help="quick, standard, full, public or a .yaml (default: quick)"
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="DIR",
        help="where files that the suite names lie; may be given more than once",
    )


def base_of(given: str | None, spec: EditSpec, name: str) -> Path:
    """The checkpoint to work on: `--base`, else the spec's own.

    Raises:
        SurgeryError: neither is given.
    """
    base = given or spec.base
    if base is None:
        raise SurgeryError(f"{name} names no base: say which checkpoint with --base DIR")
    return Path(base)


def check_new_file(out: str | Path) -> None:
    """Raises SurgeryError if a file cannot be written there; an existing file may be replaced."""
    path = Path(out)
    if path.is_dir():
        raise SurgeryError(f"{path} is a folder, a file was to be written there")
    _check_parent(path)


def check_new_folder(out: str | Path, overwrite: bool, base: str | Path | None = None) -> None:
    """Raises SurgeryError if a checkpoint folder cannot be made there.

    Writing it checks the same and more; here it is asked before hours of solving.
    """
    path = Path(out)
    if base is not None:
        source, target = Path(base).resolve(), path.resolve()
        if target == source or source in target.parents or target in source.parents:
            raise SurgeryError(f"{path} and the base {base} overlap: write the result elsewhere")
    if os.path.lexists(path):
        if not overwrite:
            raise SurgeryError(f"{path} already exists: choose another name, or say --overwrite")
        if not path.is_dir() or (any(path.iterdir()) and not (path / "config.json").is_file()):
            raise SurgeryError(
                f"{path} exists and is no checkpoint folder: delete it yourself first"
            )
    _check_parent(path)


def layers_of(text: str | None) -> list[int] | None:
    """Layers as people write them: "3", "0,4,8-11". None stays None.

    Raises:
        SurgeryError: anything else.
    """
    if text is None:
        return None
    layers: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            layers += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        raise SurgeryError(f"layers {text!r}: expected numbers such as 0,4,8-11") from None
    if not layers:
        raise SurgeryError(f"layers {text!r}: the range is empty")
    return sorted(set(layers))


def limits_of(given: list[str]) -> dict[str, float]:
    """`NAME=VALUE` words as numbers.

    Raises:
        SurgeryError: not of that form.
    """
    found = {}
    for word in given:
        name, equals, value = word.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise SurgeryError(f"limit {word!r}: expected NAME=NUMBER, such as kl_mean=0.05")
    return found


def _check_parent(path: Path) -> None:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise SurgeryError(f"{path} cannot be written: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise SurgeryError(f"{path} cannot be written: no permission for {parent}")
