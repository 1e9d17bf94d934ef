"""Files a suite names: where they lie, and their rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery import resources
from surgery.errors import SurgeryError
from surgery.spec.rows import parse_rows

_HUB = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)")


def locate(name: str, folders: Sequence[Path]) -> Path | None:
    """The first place a file is found in: the folders, in each by its whole name or its last part alone,
    then what ships with the project. `hf://datasets/ORG/NAME[@REVISION]/FILE` comes from the hub.

    Raises:
        SurgeryError: the hub does not give it.
    """
    if name.startswith("hf://"):
        return _from_hub(name)
    given = Path(name).expanduser()
    places = [given]
    if not given.is_absolute():
        places += [place for folder in folders for place in (folder / given, folder / given.name)]
    found = next((place for place in places if place.is_file()), None)
    if found is None and not given.is_absolute():
        try:
            return resources.path(*given.parts)
        except SurgeryError:
            return None
    return found


def _from_hub(url: str) -> Path:
    match = _HUB.fullmatch(url)
    if match is None:
        raise SurgeryError(f"{url}: expected hf://datasets/ORG/NAME/FILE")
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                match["repo"], match["file"], repo_type="dataset", revision=match["revision"]
            )
        )
    except Exception as error:  # offline, no such file, gated: all the same to the suite
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SurgeryError(f"cannot get {url}: {reason}") from None


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        SurgeryError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SurgeryError(f"cannot read {path}: {error}") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .json or .csv file. A .json file may hold a list or an object a line.

    Raises:
        SurgeryError: it is neither, or its rows are no objects.
    """
    rows = parse_rows(read_text(path), path)
    if not all(isinstance(row, dict) for row in rows):
        raise SurgeryError(f"{path}: expected an object a row")
    return rows
