"""The files of a checkpoint folder beside its weights: which of them an edited copy takes along."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from surgery.errors import SurgeryError

__all__ = ["relative_name", "side_files"]

# Weights in any format: a copy of these beside edited shards would still be the unedited model.
_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|h5|msgpack|ot|onnx|onnx_data|tflite|mlmodel)"
    r"(\.index\.json)?"
)
_PARTIAL = re.compile(r"\..+\.(partial|replaced)-\d+-.*")


def side_files(folder: Path, leave_out: Collection[str] = ()) -> dict[str, Path]:
    """Tokenizer, templates, cards and the like: relative name ("/" between folders) -> file.

    Left out: weights of every format and their indexes, what an earlier edit put there
    (surgery.json, deltas), hidden folders, and the names in `leave_out`. Linked folders are
    followed once.

    Raises:
        SurgeryError: a link leads nowhere.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for current, folders, names in os.walk(folder, followlinks=True):
        here = Path(current).relative_to(folder)
        seen.add(os.path.realpath(current))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and os.path.realpath(os.path.join(current, name)) not in seen
            and (here / name).as_posix() != "deltas"
        )
        for name in sorted(names):
            relative = (here / name).as_posix()
            if relative in leave_out or relative == "surgery.json":
                continue
            if _WEIGHTS.fullmatch(name) or _PARTIAL.fullmatch(name):
                continue
            file = Path(current, name)
            if not file.exists():
                raise SurgeryError(f"{file} is a link that leads nowhere: remove it or fetch again")
            if file.is_file():
                found[relative] = file
    return found


def relative_name(name: str) -> str:
    """A name inside the folder in its plain form; SurgeryError if it leads out of it."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise SurgeryError(f"{name!r} is no name of a file inside the checkpoint folder")
    return path.as_posix()
