"""What is compared: a checkpoint folder, a base with deltas on it, or a model that is loaded already.

In text a side is `DIR`, or `DIR+one.delta.safetensors+two.delta.safetensors`. Sides on one base share
one model in memory: deltas are put on and taken off, nothing is loaded twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from surgery.delta import Delta
    from surgery.model import Model


@dataclass(frozen=True)
class Side:
    """A state of a model: where its weights are, and the deltas on top, in order."""

    name: str
    source: Path | Model
    deltas: tuple[Delta, ...] = ()

    @classmethod
    def of(cls, what: Side | Model | str | Path, name: str | None = None) -> Side:
        """A side from a folder, `DIR+DELTA...`, a loaded model, or a side.

        A loaded model counts with the deltas that are on it now.

        Raises:
            SurgeryError: no such folder or delta.
        """
        if isinstance(what, Side):
            return what
        if not isinstance(what, str | Path):
            edits = "".join(f"+{delta.name}" for delta in what.edits)
            return cls(name or f"{what.checkpoint.path.name}{edits}", what, tuple(what.edits))
        folder, files = _split(str(what))
        from surgery.delta import load_delta

        deltas = tuple(load_delta(file) for file in files)
        label = "+".join([folder.resolve().name, *(file.name.split(".")[0] for file in files)])
        return cls(name or label, folder, deltas)


def sides_of(whats: Sequence[Any]) -> list[Side]:
    """Several sides, told apart by name.

    Raises:
        SurgeryError: fewer than one, or an unreadable one.
    """
    found = [Side.of(what) for what in whats]
    if not found:
        raise SurgeryError("nothing to compare: name at least one checkpoint")
    names = [side.name for side in found]
    if len(set(names)) < len(names):
        # Two folders of one name: the whole path says which is which.
        found = [
            Side(_long_name(side, index), side.source, side.deltas)
            if names.count(side.name) > 1
            else side
            for index, side in enumerate(found)
        ]
    return found


def _long_name(side: Side, index: int) -> str:
    where = str(side.source) if isinstance(side.source, Path) else side.name
    return f"{where} ({index + 1})"


def _split(text: str) -> tuple[Path, list[Path]]:
    """Folder and delta files of `DIR+DELTA+...`; a folder whose own name has a plus in it is one too."""
    if Path(text).is_dir():
        return Path(text), []
    parts = text.split("+")
    for count in range(len(parts) - 1, 0, -1):
        folder = Path("+".join(parts[:count]))
        if folder.is_dir():
            files = [Path(part) for part in parts[count:]]
            for file in files:
                if not file.is_file():
                    raise SurgeryError(f"no delta file {file} (in {text})")
            return folder, files
    raise SurgeryError(f"no such checkpoint folder: {parts[0] if len(parts) > 1 else text}")


class Pool:
    """Models in memory, at most `capacity` of them; the one used longest ago goes first."""

    def __init__(self, capacity: int = 1, device: Any = None, dtype: Any = None) -> None:
        self.capacity, self.device, self.dtype = capacity, device, dtype
        self._loaded: dict[Path, Model] = {}

    @contextlib.contextmanager
    def use(self, side: Side) -> Iterator[Model]:
        """The model in this side's state, for the length of the block; afterwards as it was before."""
        from surgery.stack.memory import set_edits

        model = self._model(side)
        before = list(model.edits)
        changed = [d.id for d in before] != [d.id for d in side.deltas]
        if changed:
            set_edits(model, list(side.deltas))
        try:
            yield model
        finally:
            if changed:
                set_edits(model, before, force=True)

    def _model(self, side: Side) -> Model:
        if not isinstance(side.source, Path):
            return side.source
        from surgery.model import load

        place = side.source.resolve()
        model = self._loaded.pop(place, None)
        if model is None:
            while len(self._loaded) >= self.capacity:
                self._loaded.pop(next(iter(self._loaded)))
            model = load(side.source, device=self.device, dtype=self.dtype)
        self._loaded[place] = model
        return model


def by_base(sides: Sequence[Side]) -> list[int]:
    """The order in which to visit sides so that each base is loaded once."""
    places = [
        str(s.source.resolve()) if isinstance(s.source, Path) else f"#{id(s.source)}" for s in sides
    ]
    return sorted(range(len(sides)), key=lambda i: (places.index(places[i]), i))
