"""Copying a file by the cheapest means the file system offers."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

__all__ = ["Link", "place", "reflink"]

Link = Literal["reflink", "copy", "hard"]

_CHUNK = 4 << 20

# FICLONE of <linux/fs.h>: _IOW(0x94, 9, int).
_FICLONE = 0x40049409

# What a system answers that cannot share blocks between these two files: copy instead.
_CANNOT = {
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOTTY,
    errno.ENOSYS,
    errno.EPERM,
    errno.EACCES,
    errno.EMLINK,
    errno.ETXTBSY,
    errno.EBADF,
}


def place(
    source: Path,
    target: Path,
    link: Link,
    advance: Callable[[int], None],
    before_copy: Callable[[int], None],
) -> None:
    """Make `target` hold the bytes of `source`: by hard link or shared blocks, else by copying.

    A link or clone that the file system refuses becomes a copy. `before_copy(nbytes)` is called
    ahead of real copying and may raise; `advance(nbytes)` after every piece. Symbolic links in
    `source` are followed, so `target` is always a plain file.
    """
    source = Path(os.path.realpath(source))
    size = source.stat().st_size
    if link == "hard" and _hard(source, target):
        advance(size)
    elif link == "reflink" and reflink(source, target):
        advance(size)
    else:
        before_copy(size)
        _copy(source, target, advance)


def reflink(source: Path, target: Path) -> bool:
    """Clone `source` to the new file `target` with shared blocks; False where that is impossible.

    A later write to either file leaves the other alone.
    """
    if sys.platform == "linux":
        import fcntl

        with open(source, "rb") as reading, open(target, "wb") as writing:
            try:
                fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
                return True
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
        return False
    if sys.platform == "darwin":
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "clonefile"):
            return False
        if libc.clonefile(os.fsencode(source), os.fsencode(target), ctypes.c_uint32(0)) != 0:
            code = ctypes.get_errno()
            if code not in _CANNOT:
                raise OSError(code, os.strerror(code), str(target))
            return False
        # clonefile keeps the mode, and downloaded weights are often read-only.
        os.chmod(target, target.stat().st_mode | 0o600)
        return True
    return False


def _hard(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def _copy(source: Path, target: Path, advance: Callable[[int], None]) -> None:
    buffer = memoryview(bytearray(_CHUNK))
    with open(source, "rb", buffering=0) as reading, open(target, "wb", buffering=0) as writing:
        while count := reading.readinto(buffer):
            piece = buffer[:count]
            while piece:
                piece = piece[writing.write(piece) :]
            advance(count)
