"""Room on the disk: asked before a long copy, told in one line when it runs out."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

__all__ = ["check_room", "in_bytes", "is_disk_full"]


def check_room(folder: Path, nbytes: int) -> None:
    """Raise the error of a full disk before writing `nbytes` to `folder`, not halfway through."""
    if shutil.disk_usage(folder).free < nbytes:
        raise OSError(errno.ENOSPC, "no space left on the disk", str(folder))


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception says that the disk, or the user's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors wraps the system's error in one of its own.
    return type(error).__name__ == "SafetensorError" and "os error 28" in str(error)


def in_bytes(count: float) -> str:
    """A number of bytes as people write it: "512 B", "1.4 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
