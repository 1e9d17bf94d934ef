"""A checkpoint folder on disk: index, hashes, streamed reads, byte-range patches, atomic output.

Nothing here imports torch until a tensor is read or written.
"""

from __future__ import annotations

from surgery.checkpoint.atomic import atomic_file, atomic_folder
from surgery.checkpoint.hashing import cache_folder
from surgery.checkpoint.header import TensorRef, read_header
from surgery.checkpoint.index import Checkpoint
from surgery.checkpoint.tensors import tensor_bytes
from surgery.checkpoint.writer import write_edited

__all__ = [
    "Checkpoint",
    "TensorRef",
    "atomic_file",
    "atomic_folder",
    "cache_folder",
    "read_header",
    "tensor_bytes",
    "write_edited",
]
