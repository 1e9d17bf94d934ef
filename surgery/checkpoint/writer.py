"""An edited checkpoint from a base: copy what stays, patch the byte ranges of what changes.

A tensor keeps its shape and dtype, so its bytes keep their place: the result is byte for byte what
saving the whole edited model again would give, and costs one tensor of memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, get_args

from surgery.checkpoint.atomic import atomic_folder
from surgery.checkpoint.clone import Link, place
from surgery.checkpoint.hashing import hash_range
from surgery.checkpoint.header import TensorRef, read_header
from surgery.checkpoint.index import INDEX_NAME, SINGLE_NAME, Checkpoint, read_json
from surgery.checkpoint.sidefiles import relative_name, side_files
from surgery.checkpoint.space import check_room, is_disk_full
from surgery.errors import SurgeryError
from surgery.progress import meter, track

if TYPE_CHECKING:
    import torch

__all__ = ["Content", "write_edited"]

# What a file beside the weights is given as: see `write_edited`.
Content = str | bytes | Path | Callable[[Path], object] | None

_CHUNK = 4 << 20


def write_edited(
    base: Checkpoint,
    out: str | Path,
    patches: Mapping[str, Callable[[], torch.Tensor] | torch.Tensor],
    *,
    added: Mapping[str, torch.Tensor] | None = None,
    removed: Collection[str] = (),
    config_changes: Mapping[str, Any] | None = None,
    restored: Mapping[str, Path] | None = None,
    files: Mapping[str, Content] | None = None,
    link: Link = "reflink",
    overwrite: bool = False,
) -> list[str]:
    """Write `base` with some tensors replaced as the new folder `out`; return the changed keys.

    Args:
        base: the checkpoint to start from. It is not touched.
        out: the folder to make. It appears whole, or not at all.
        patches: new values of tensors of the base, in the same shape and dtype, or functions that
            make them; functions are called one at a time, in the order of the bytes on disk.
        added: tensors the base does not have, such as the head of an untied model. They go to a
            shard of their own.
        removed: tensors to leave out again, with the shard that was made for them. The other
            shards get back the names they had before.
        config_changes: fields to set in config.json.
        restored: files to take for config.json and the index, as they were before `removed` was
            added; without an index the folder becomes a single file again.
        files: more files by relative name: text, bytes, the path of a file to copy, or a function
            that writes the path it is given. They replace the base's files of the same name; None
            leaves those out.
        link: how unchanged shards get there. "reflink" shares blocks where the file system can and
            copies elsewhere; "hard" links, so that both folders hold the very same file.
        overwrite: replace an `out` that is a checkpoint already.

    The other files of the base are copied, except weights in other formats (which would still hold
    the unedited model), the base's own surgery.json and deltas, and hidden folders. Every patched
    tensor is read back and compared. A patch equal to what is there changes nothing and is not
    among the keys returned.

    Raises:
        SurgeryError: a tensor is unknown, of another shape or dtype, or not finite; `removed`
            shares a shard with others; `out` exists or lies inside the base; the disk is full.
    """
    added, files, restored = dict(added or {}), dict(files or {}), dict(restored or {})
    out = Path(os.path.abspath(Path(out).expanduser()))
    shards = _kept_shards(base, removed)
    names = _shard_names(base, shards, bool(added), bool(removed) and INDEX_NAME not in restored)
    _check_request(base, patches, added, link)
    _check_files(files, {"config.json", INDEX_NAME, SINGLE_NAME, *names.values()})
    _check_target(base, out, overwrite)

    replaced = {relative_name(name) for name in files}
    others = side_files(base.path, leave_out={*replaced, "config.json"})
    touched = {base.tensors[key].file for key in patches}
    # What goes where, and how. A hard link would carry a patch into the base.
    copies: list[tuple[Path, str, Link]] = []
    for shard in shards:
        how: Link = "reflink" if link == "hard" and shard in touched else link
        copies.append((shard, names[shard], how))
    for name, file in others.items():
        copies.append((file, name, "copy"))
    size = sum(file.stat().st_size for file, _, how in copies if how != "hard")
    size += sum(tensor.nbytes for tensor in added.values())

    with atomic_folder(out, overwrite, expected_bytes=size) as folder:
        _copy_all(base, folder, copies)
        changed = _patch_all(base, folder, names, patches)
        if added:
            _write_added(folder / names[None], added)
        _write_index(base, folder, names, added, removed)
        _write_config(base, folder, config_changes or {})
        for name, file in restored.items():
            shutil.copyfile(file, folder / name)
        for name, content in files.items():
            _write_file(folder / relative_name(name), content)
        _check_result(base, Checkpoint.open(folder), added, removed)
    return sorted([*changed, *added])


def _check_request(
    base: Checkpoint,
    patches: Mapping[str, Any],
    added: Mapping[str, torch.Tensor],
    link: str,
) -> None:
    from surgery.checkpoint.tensors import dtype_name, is_finite

    if link not in get_args(Link):
        raise SurgeryError(f"link must be one of {', '.join(get_args(Link))}, not {link!r}")
    for key, value in patches.items():
        ref = base.ref(key)
        if not callable(value):
            _check_patch(ref, value)
    for key, tensor in added.items():
        if key in base.tensors:
            raise SurgeryError(f"tensor {key} is in {base.path} already: patch it, do not add it")
        dtype_name(tensor.dtype)
        if not is_finite(tensor):
            raise SurgeryError(f"tensor {key} holds values that are not finite: not written")


def _check_files(files: Mapping[str, Content], forbidden: set[str]) -> None:
    for name, content in files.items():
        if relative_name(name) in forbidden:
            raise SurgeryError(f"{name} cannot be given as a file: it is part of the checkpoint")
        if isinstance(content, Path) and not content.is_file():
            raise SurgeryError(f"no such file: {content}")


def _check_target(base: Checkpoint, out: Path, overwrite: bool) -> None:
    source, target = base.path.resolve(), out.resolve()
    if target == source or source in target.parents:
        raise SurgeryError(f"{out} is the base or inside it: write the edited model elsewhere")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise SurgeryError(f"{out} already exists: choose another name, or ask to overwrite it")
    if target in source.parents:
        raise SurgeryError(f"{out} holds the base {base.path}: it cannot be overwritten")
    # Overwriting deletes: a slip of the hand must not cost somebody's home folder.
    if not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").is_file()):
        raise SurgeryError(f"{out} exists and is no checkpoint folder: delete it yourself first")


def _check_patch(ref: TensorRef, tensor: torch.Tensor) -> None:
    from surgery.checkpoint.tensors import dtype_name, is_finite

    if tuple(tensor.shape) != ref.shape:
        raise SurgeryError(
            f"tensor {ref.key} has shape {ref.shape}, its new value {tuple(tensor.shape)}"
        )
    if dtype_name(tensor.dtype) != ref.dtype:
        raise SurgeryError(
            f"tensor {ref.key} is {ref.dtype}, its new value {dtype_name(tensor.dtype)}"
        )
    if tensor.is_meta:
        raise SurgeryError(f"the new value of tensor {ref.key} is on the meta device: no numbers")
    if not is_finite(tensor):
        raise SurgeryError(f"the new value of tensor {ref.key} is not finite: not written")


def _kept_shards(base: Checkpoint, removed: Collection[str]) -> list[Path]:
    """The shards that stay when the tensors in `removed` go."""
    leaving = {base.ref(key).file for key in removed}
    for key, ref in base.tensors.items():
        if ref.file in leaving and key not in removed:
            raise SurgeryError(f"{ref.file} holds {key} as well: its shard cannot be left out")
    return [shard for shard in base.shards if shard not in leaving]


def _shard_names(
    base: Checkpoint, shards: Sequence[Path], adding: bool, single: bool
) -> dict[Path | None, str]:
    """The file name each shard gets, and under None the name of the shard of added tensors."""
    names: dict[Path | None, str] = {shard: shard.name for shard in shards}
    if single:
        if len(shards) != 1:
            raise SurgeryError(f"{base.path} has {len(shards)} shards: they need an index")
        return {shards[0]: SINGLE_NAME}
    if not adding:
        return names
    if base.weight_map is None:
        # A file called model.safetensors is loaded alone, whatever an index beside it says.
        names[base.shards[0]] = SINGLE_NAME.replace(".", "-00001-of-00002.", 1)
        names[None] = SINGLE_NAME.replace(".", "-00002-of-00002.", 1)
        return names
    taken, number = set(names.values()), 1
    while (name := f"model-added-{number:05d}.safetensors") in taken:
        number += 1
    names[None] = name
    return names


def _copy_all(base: Checkpoint, folder: Path, copies: Sequence[tuple[Path, str, Link]]) -> None:
    sizes = [file.stat().st_size for file, _, _ in copies]
    try:
        with meter(f"copying {base.path.name}", total=sum(sizes), unit="B") as progress:
            for i, (file, name, how) in enumerate(copies):
                # Where one file has to be copied, so have the later ones: ask for all of it now.
                ahead = sum(sizes[j] for j in range(i, len(copies)) if copies[j][2] != "hard")

                def before_copy(nbytes: int, ahead: int = ahead) -> None:
                    check_room(folder, max(nbytes, ahead))

                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                place(file, folder / name, how, progress.advance, before_copy)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise SurgeryError(f"cannot copy {base.path}: {error}") from error


def _patch_all(
    base: Checkpoint,
    folder: Path,
    names: Mapping[Path | None, str],
    patches: Mapping[str, Callable[[], torch.Tensor] | torch.Tensor],
) -> list[str]:
    """Patch the copied shards; return the keys whose bytes differ from before."""
    changed: list[str] = []
    headers: dict[Path, dict[str, TensorRef]] = {}
    order = sorted(patches, key=lambda key: (base.tensors[key].file, base.tensors[key].begin))
    for key in track(order, "patching tensors", total=len(order)):
        ref = base.tensors[key]
        file = folder / names[ref.file]
        if file not in headers:
            headers[file] = read_header(file)[0]
        found = headers[file].get(key)
        if found is None or (found.dtype, found.shape, found.begin, found.end) != (
            ref.dtype,
            ref.shape,
            ref.begin,
            ref.end,
        ):
            raise SurgeryError(f"{ref.file} was rewritten while in use: open it again")
        value = patches[key]
        tensor = value() if callable(value) else value
        _check_patch(ref, tensor)
        if _patch(file, ref, tensor):
            changed.append(key)
    return changed


def _patch(file: Path, ref: TensorRef, tensor: torch.Tensor) -> bool:
    """Write a tensor's bytes in place and read them back; False if they were there already."""
    from surgery.checkpoint.tensors import tensor_bytes

    data = tensor_bytes(tensor)
    with open(file, "r+b", buffering=0) as stream:
        if _holds(stream, ref.begin, data):
            return False
        stream.seek(ref.begin)
        left = data
        while left:
            left = left[stream.write(left[:_CHUNK]) :]
        if hash_range(stream, ref.begin, ref.end) != hashlib.sha256(data).hexdigest():
            raise SurgeryError(f"tensor {ref.key} did not read back as it was written: bad disk?")
    return True


def _holds(stream: BinaryIO, begin: int, data: memoryview) -> bool:
    stream.seek(begin)
    for start in range(0, len(data), _CHUNK):
        piece = data[start : start + _CHUNK]
        if stream.read(len(piece)) != piece:
            return False
    return True


def _write_added(file: Path, added: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    from surgery.checkpoint.tensors import tensor_bytes

    # Copies: the format refuses tensors that share memory, as a head does that was tied.
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in added.items()}
    check_room(file.parent, sum(tensor.nbytes for tensor in tensors.values()))
    save_file(tensors, file, metadata={"format": "pt"})
    written = read_header(file)[0]
    for key, tensor in tensors.items():
        with open(file, "rb", buffering=0) as stream:
            if not _holds(stream, written[key].begin, tensor_bytes(tensor)):
                raise SurgeryError(f"tensor {key} did not read back as it was written: bad disk?")


def _write_index(
    base: Checkpoint,
    folder: Path,
    names: Mapping[Path | None, str],
    added: Mapping[str, torch.Tensor],
    removed: Collection[str],
) -> None:
    if removed or (base.weight_map is None and not added):
        return
    if not added:
        shutil.copyfile(base.path / INDEX_NAME, folder / INDEX_NAME)
        return
    index = read_json(base.path / INDEX_NAME) if base.weight_map is not None else {}
    weight_map = {key: names[ref.file] for key, ref in base.tensors.items()}
    weight_map |= dict.fromkeys(added, names[None])
    metadata = index.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    metadata["total_size"] = sum(ref.nbytes for ref in base.tensors.values()) + sum(
        tensor.nbytes for tensor in added.values()
    )
    if isinstance(metadata.get("total_parameters"), int):
        metadata["total_parameters"] += sum(tensor.numel() for tensor in added.values())
    index |= {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _write_config(base: Checkpoint, folder: Path, changes: Mapping[str, Any]) -> None:
    if not changes:
        shutil.copyfile(base.path / "config.json", folder / "config.json")
        return
    config = {**read_json(base.path / "config.json"), **changes}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _write_file(file: Path, content: Content) -> None:
    if content is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(file)
    elif isinstance(content, Path):
        shutil.copyfile(content, file)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content, "utf-8")


def _check_result(
    base: Checkpoint,
    edited: Checkpoint,
    added: Mapping[str, torch.Tensor],
    removed: Collection[str],
) -> None:
    kept = {key: ref for key, ref in base.tensors.items() if key not in removed}
    expected = {key: (ref.dtype, ref.shape) for key, ref in kept.items()}
    found = {k: (r.dtype, r.shape) for k, r in edited.tensors.items() if k not in added}
    if found != expected or not added.keys() <= edited.tensors.keys():
        raise SurgeryError(f"{base.path} changed while it was being copied: try again")
