"""SHA-256 of each tensor's bytes, remembered on disk for as long as the file does not change.

One small JSON file per shard. An entry counts only if path, size, modification and change time, and
inode of the shard are what they were: anything else is hashed again. Writers replace the file as a
whole, so two at once lose a saving at worst, never correctness.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import BinaryIO

from surgery.checkpoint.atomic import atomic_file
from surgery.checkpoint.header import TensorRef
from surgery.errors import SurgeryError

__all__ = ["HashCache", "cache_folder", "fingerprint", "hash_range", "hash_ref"]

_CHUNK = 4 << 20


def cache_folder() -> Path:
    """Where surgery keeps what it can compute again: $SURGERY_CACHE, else ~/.cache/surgery."""
    chosen = os.environ.get("SURGERY_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "surgery"


def fingerprint(stat: os.stat_result) -> list[int]:
    """What tells a file from its changed self: size, mtime, ctime (both ns), inode, device.

    The change time is in it because the modification time can be set back.
    """
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def hash_range(stream: BinaryIO, begin: int, end: int) -> str:
    """SHA-256 (hex) of the bytes `begin` to `end` of an open file."""
    digest, left = hashlib.sha256(), end - begin
    buffer = memoryview(bytearray(max(1, min(_CHUNK, left))))
    stream.seek(begin)
    while left:
        count = stream.readinto(buffer[: min(len(buffer), left)])  # type: ignore[attr-defined]
        if not count:
            raise SurgeryError(f"{stream.name} is truncated: it ends before byte {end:,}")
        digest.update(buffer[:count])
        left -= count
    return digest.hexdigest()


def hash_ref(stream: BinaryIO, ref: TensorRef, cache: HashCache) -> str:
    """SHA-256 (hex) of one tensor of an open file, from the cache where it can be trusted."""
    before = fingerprint(os.fstat(stream.fileno()))
    known = cache.get(before, ref)
    if known is not None:
        return known
    value = hash_range(stream, ref.begin, ref.end)
    if fingerprint(os.fstat(stream.fileno())) == before:
        cache.put(before, ref, value)
    return value


class HashCache:
    """The remembered hashes of one shard: `get` and `put` work in memory, `save` writes them."""

    def __init__(self, shard: Path) -> None:
        self._shard = os.path.realpath(shard)
        name = hashlib.sha256(os.fsencode(self._shard)).hexdigest()[:32]
        self._file = cache_folder() / "hashes" / f"{name}.json"
        self._mark: list[int] | None = None
        self._known: dict[str, str] = {}
        self._new = False

    def get(self, mark: list[int], ref: TensorRef) -> str | None:
        """The hash remembered for this tensor of a file with this fingerprint, if there is one."""
        if self._mark != mark:
            self._mark, self._known, self._new = mark, self._load(mark), False
        return self._known.get(_entry(ref))

    def put(self, mark: list[int], ref: TensorRef, value: str) -> None:
        """Remember a hash, unless the file is so new that a later change might not show."""
        if self._mark == mark and time.time_ns() - max(mark[1], mark[2]) > _tick(mark):
            self._known[_entry(ref)] = value
            self._new = True

    def save(self) -> None:
        """Write what is new; a cache that cannot be written is no reason to fail."""
        if not self._new or self._mark is None:
            return
        # What another process has found out meanwhile stays in.
        self._known = {**self._load(self._mark), **self._known}
        record = {"path": self._shard, "file": self._mark, "sha256": self._known}
        with contextlib.suppress(OSError, SurgeryError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._file, durable=False) as partial:
                partial.write_text(json.dumps(record), "utf-8")
        self._new = False

    def _load(self, mark: list[int]) -> dict[str, str]:
        try:
            record = json.loads(self._file.read_text("utf-8"))
            if record["path"] != self._shard or record["file"] != mark:
                return {}
            return {
                str(key): value
                for key, value in record["sha256"].items()
                if isinstance(value, str) and len(value) == 64
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}


def _entry(ref: TensorRef) -> str:
    return f"{ref.begin}-{ref.end}-{ref.dtype}"


def _tick(mark: list[int]) -> int:
    """Nanoseconds in which two changes may get the same time: some file systems count seconds."""
    return 2_500_000_000 if mark[1] % 1_000_000_000 == 0 else 100_000_000
