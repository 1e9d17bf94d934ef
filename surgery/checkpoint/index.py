"""A checkpoint folder: which tensors it holds, where, and what they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from surgery.checkpoint.hashing import HashCache, fingerprint, hash_ref
from surgery.checkpoint.header import DTYPE_BITS, TensorRef, read_header
from surgery.errors import SurgeryError
from surgery.progress import track

if TYPE_CHECKING:
    import torch

__all__ = ["INDEX_NAME", "SINGLE_NAME", "Checkpoint", "read_json"]

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

# Fields of config.json that say who wrote it and how to load it, not what the model is.
_VOLATILE = {"transformers_version", "_name_or_path", "torch_dtype", "dtype"}

_HEAD_NAMES = ("lm_head.weight", "embed_out.weight")
_EMBEDDING_NAMES = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


class Checkpoint:
    """A local Hugging Face folder with safetensors weights, in one file or in shards.

    Attributes:
        path: the folder.
        config: its config.json.
        tensors: every tensor on disk, sorted by key.
        shards: the weight files, sorted by name.
        weight_map: key -> file name, from the index file; None for a single file.

    Opening reads the headers only. Reading and hashing notice when a file has changed since.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        tensors: dict[str, TensorRef],
        weight_map: dict[str, str] | None,
    ) -> None:
        self.path = path
        self.config = config
        self.tensors = dict(sorted(tensors.items()))
        self.weight_map = weight_map
        self.shards = sorted({ref.file for ref in tensors.values()})
        self._marks = {shard: fingerprint(shard.stat()) for shard in self.shards}
        self._caches: dict[Path, HashCache] = {}

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read the index of a checkpoint folder.

        Raises:
            SurgeryError: it is no such folder, or config, index or shards do not fit together.
        """
        path = Path(path).expanduser()
        if not path.exists():
            raise SurgeryError(f"no such checkpoint folder: {path}")
        if not path.is_dir():
            raise SurgeryError(f"{path} is a file, a checkpoint is a folder with a config.json")
        if not (path / "config.json").is_file():
            raise SurgeryError(f"{path} is no checkpoint folder: it has no config.json")
        config = read_json(path / "config.json")
        # The single file comes first, as in transformers: an index beside it is not used.
        if (path / SINGLE_NAME).is_file():
            tensors, _ = read_header(path / SINGLE_NAME)
            weight_map = None
        elif (path / INDEX_NAME).is_file():
            tensors, weight_map = _read_shards(path)
        else:
            raise SurgeryError(_why_no_weights(path))
        if not tensors:
            raise SurgeryError(f"{path} holds no tensors")
        return cls(path, config, tensors, weight_map)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.tensors)} tensors)"

    def ref(self, key: str) -> TensorRef:
        """Where a tensor lies; SurgeryError if the checkpoint has none of that name."""
        try:
            return self.tensors[key]
        except KeyError:
            raise SurgeryError(f"{self.path} has no tensor {key!r}") from None

    def read(self, key: str) -> torch.Tensor:
        """Read one tensor, and nothing else, to the CPU in its stored dtype."""
        from surgery.checkpoint.tensors import read_tensor

        with self._opened(key) as (stream, ref):
            return read_tensor(stream, ref)

    def read_bytes(self, key: str) -> bytes:
        """The raw bytes of one tensor."""
        with self._opened(key) as (stream, ref):
            stream.seek(ref.begin)
            data = stream.read(ref.nbytes)
        if len(data) != ref.nbytes:
            raise SurgeryError(f"{ref.file} is truncated: tensor {key} is not all there")
        return data

    def hash(self, key: str) -> str:
        """SHA-256 (hex) of the tensor's raw bytes, cached on disk while the file stays the same."""
        value = self._hash(key)
        self._cache(self.ref(key).file).save()
        return value

    def hashes(self) -> dict[str, str]:
        """`hash` of every tensor, by key."""
        # In the order of the bytes on disk: reading ahead works, and each shard is done once.
        order = sorted(self.tensors.values(), key=lambda ref: (ref.file, ref.begin))
        found: dict[str, str] = {}
        try:
            for ref in track(order, "hashing tensors", total=len(order)):
                found[ref.key] = self._hash(ref.key)
        finally:
            for cache in self._caches.values():
                cache.save()
        return {key: found[key] for key in self.tensors}

    @property
    def id(self) -> str:
        """The checkpoint's identity: 64 hex digits from its tensors and its config.

        Neither the sharding nor who saved it and when plays a part.
        """
        hashes = self.hashes()
        content = {
            "config": _without_volatile(self.config),
            "tensors": [
                [key, ref.dtype, list(ref.shape), hashes[key]] for key, ref in self.tensors.items()
            ],
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def dtype(self) -> str:
        """The dtype most numbers have, as in the file ("F32", "BF16", ...)."""
        count: Counter[str] = Counter()
        for ref in self.tensors.values():
            count[ref.dtype] += 8 * ref.nbytes // DTYPE_BITS[ref.dtype]
        return count.most_common(1)[0][0]

    @property
    def tied_embeddings(self) -> bool:
        """Whether the output head is the input embedding.

        So it is when no head is on disk. With one there, the config's `tie_word_embeddings` decides
        (True where it says nothing), except that transformers does not tie two that differ.
        """
        heads = [key for key in self.tensors if _ends_with(key, _HEAD_NAMES)]
        if not heads:
            return True
        text = self.config.get("text_config")
        inner = text.get("tie_word_embeddings") if isinstance(text, dict) else None
        said = self.config.get("tie_word_embeddings", inner)
        if said is False:
            return False
        head = self.tensors[heads[0]]
        return any(
            (ref.shape, ref.dtype) == (head.shape, head.dtype)
            and self.hash(key) == self.hash(head.key)
            for key, ref in self.tensors.items()
            if _ends_with(key, _EMBEDDING_NAMES)
        )

    def _hash(self, key: str) -> str:
        with self._opened(key) as (stream, ref):
            return hash_ref(stream, ref, self._cache(ref.file))

    def _cache(self, shard: Path) -> HashCache:
        if shard not in self._caches:
            self._caches[shard] = HashCache(shard)
        return self._caches[shard]

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[BinaryIO, TensorRef]]:
        """The file of a tensor, open for reading, after making sure the tensor is still there."""
        ref = self.ref(key)
        try:
            stream = open(ref.file, "rb")
        except OSError as error:
            raise SurgeryError(f"cannot read {ref.file}: {error.strerror or error}") from error
        with stream:
            mark = fingerprint(os.fstat(stream.fileno()))
            if mark != self._marks[ref.file]:
                if read_header(ref.file)[0].get(key) != ref:
                    raise SurgeryError(f"{ref.file} was rewritten while in use: open it again")
                self._marks[ref.file] = mark
            yield stream, ref


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise SurgeryError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SurgeryError(f"{file} is not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SurgeryError(f"{file} is not a JSON object")
    return content


def _read_shards(path: Path) -> tuple[dict[str, TensorRef], dict[str, str]]:
    index = path / INDEX_NAME
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SurgeryError(f"{index} has no weight_map from tensors to shards")
    tensors: dict[str, TensorRef] = {}
    for name in sorted({str(name) for name in weight_map.values()}):
        # A name with a folder in it could lead anywhere on the machine.
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise SurgeryError(f"{index} names a shard that is no plain file name: {name!r}")
        if not (path / name).is_file():
            raise SurgeryError(f"{index} names the shard {name}, which is missing")
        for key, ref in read_header(path / name)[0].items():
            if key in tensors:
                raise SurgeryError(f"{path}: {tensors[key].file.name} and {name} both hold {key!r}")
            tensors[key] = ref
    for key, name in weight_map.items():
        if key not in tensors or tensors[key].file.name != name:
            raise SurgeryError(f"{index} says {key!r} is in {name}, which does not hold it")
    return tensors, weight_map


def _why_no_weights(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    there = [name for name in names if name.endswith((".bin", ".gguf", ".pt", ".pth", ".h5"))]
    if "adapter_model.safetensors" in names:
        return f"{path} is an adapter, not a checkpoint: merge it into its base first"
    other = [name for name in names if name.endswith(".safetensors")]
    if other:
        return f"{path} has {other[0]}, but neither {SINGLE_NAME} nor {INDEX_NAME}"
    if there:
        return f"{path} has no safetensors weights, only {there[0]}: convert them first"
    return f"{path} has no weights: neither {SINGLE_NAME} nor {INDEX_NAME}"


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_volatile(v) for k, v in value.items() if k not in _VOLATILE}
    if isinstance(value, list):
        return [_without_volatile(item) for item in value]
    return value


def _ends_with(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.endswith("." + name) for name in names)
