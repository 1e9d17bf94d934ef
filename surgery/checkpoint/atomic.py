"""Files and folders that appear whole or not at all.

Everything is written beside its target under a hidden name that carries the writer's process id,
brought to disk, and renamed. An exception removes it; what a killed process left behind is swept by
the next write to the same target.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from surgery.checkpoint.space import in_bytes, is_disk_full
from surgery.errors import SurgeryError

__all__ = ["atomic_file", "atomic_folder", "sweep"]

# Process ids mean something on one machine only: a shared file system shows those of others too.
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:4]


@contextlib.contextmanager
def atomic_file(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield the path of a temporary sibling to write; it becomes `path` when the block ends well.

    The temporary name keeps the suffix of `path`. An existing file is replaced. With `durable` the
    bytes are on disk before the new name is.

    Raises:
        SurgeryError: `path` is a folder, its parent cannot be written, or the disk is full.
    """
    path = _absolute(path)
    if path.is_dir():
        raise SurgeryError(f"{path} is a folder, a file was to be written there")
    sweep(path)
    with _temporary(path, suffix=path.suffix) as partial:
        yield partial
        with _as_input_error(path):
            if durable:
                _sync(partial)
            os.replace(partial, path)
            if durable:
                _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(
    out: str | Path, overwrite: bool = False, *, expected_bytes: int | None = None
) -> Iterator[Path]:
    """Yield an empty temporary sibling folder to fill; it becomes `out` when the block ends well.

    With `overwrite` an existing `out` is swapped for the new folder in one step where the system
    can do that, else moved aside first and moved back if the new one cannot take its place.
    `expected_bytes` is what a full disk's message says was needed.

    Raises:
        SurgeryError: `out` exists (without `overwrite`), its parent cannot be written, or the disk
            is full.
    """
    out = _absolute(out)
    sweep(out)
    if os.path.lexists(out) and not overwrite:
        raise SurgeryError(f"{out} already exists: choose another name, or ask to overwrite it")
    with _temporary(out, expected_bytes=expected_bytes) as partial:
        with _as_input_error(out):
            partial.mkdir()
        yield partial
        with _as_input_error(out):
            _sync_tree(partial)
            if not os.path.lexists(out):
                os.rename(partial, out)
            elif overwrite:
                _swap_in(partial, out)
            else:
                raise SurgeryError(f"{out} has come to exist meanwhile: choose another name")
            _sync(out.parent)


def sweep(target: Path) -> None:
    """Remove what processes that are dead now left beside `target`.

    An old folder that was moved aside while its successor never arrived is moved back instead.
    """
    pattern = re.compile(
        r"\." + re.escape(target.name) + r"\.(partial|replaced)-(\d+)-([0-9a-zA-Z]+)(\.[^.]*)?"
    )
    try:
        siblings = list(os.scandir(target.parent))
    except OSError:
        return
    for sibling in siblings:
        match = pattern.fullmatch(sibling.name)
        if match is None or _alive(int(match[2])) or _foreign(match[3]):
            continue
        if match[1] == "replaced" and not os.path.lexists(target):
            with contextlib.suppress(OSError):
                os.rename(sibling.path, target)
            continue
        _remove(Path(sibling.path))


def _absolute(path: str | Path) -> Path:
    path = Path(os.path.abspath(Path(path).expanduser()))
    if not path.name:
        raise SurgeryError(f"{path} cannot be written: it is the root of the file system")
    return path


@contextlib.contextmanager
def _temporary(target: Path, suffix: str = "", expected_bytes: int | None = None) -> Iterator[Path]:
    """The temporary sibling of `target`, gone at the end unless it was renamed."""
    partial = target.with_name(f".{target.name}.partial-{_token()}{suffix}")
    created: list[Path] = []
    try:
        with _as_input_error(target):
            folder = target.parent
            while not folder.exists():
                created.append(folder)
                folder = folder.parent
            target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
    except BaseException as error:
        _remove(partial)
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if is_disk_full(error):
            raise SurgeryError(_disk_full(target, expected_bytes)) from error
        raise
    _remove(partial)


def _disk_full(target: Path, needed: int | None) -> str:
    folder = next(folder for folder in target.parents if folder.exists())
    free = in_bytes(shutil.disk_usage(folder).free)
    wanted = f"{in_bytes(needed)} needed, " if needed is not None else ""
    return f"no space left on the disk for {target}: {wanted}{free} free; nothing was written"


def _token() -> str:
    return f"{os.getpid()}-{_HOST}{secrets.token_hex(4)}"


@contextlib.contextmanager
def _as_input_error(target: Path) -> Iterator[None]:
    """Say in one line what the system has against writing `target`."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        raise SurgeryError(f"cannot write {target}: {error.strerror or error}") from error


def _swap_in(partial: Path, out: Path) -> None:
    """Put `partial` in the place of an existing `out`, and delete what was there."""
    aside = out.with_name(f".{out.name}.replaced-{_token()}")
    if _exchange(partial, out):
        os.rename(partial, aside)
    else:
        os.rename(out, aside)
        try:
            os.rename(partial, out)
        except BaseException:
            os.rename(aside, out)
            raise
    _remove(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        a, b = os.fsencode(one), os.fsencode(other)
        if sys.platform == "linux":
            at_fdcwd, rename_exchange = -100, 2
            return libc.renameat2(at_fdcwd, a, at_fdcwd, b, ctypes.c_uint(rename_exchange)) == 0
        if sys.platform == "darwin":
            rename_swap = 2
            return libc.renamex_np(a, b, ctypes.c_uint(rename_swap)) == 0
    except (OSError, AttributeError, TypeError):
        pass
    return False


def _sync(path: Path) -> None:
    """Bring a file or folder to disk; not every file system does this for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if is_disk_full(error) or error.errno == errno.EIO:
            raise
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for current, _, files in os.walk(folder):
        for name in files:
            _sync(Path(current, name))
        _sync(Path(current))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _foreign(token: str) -> bool:
    """Whether the random part of a temporary name says that another machine wrote it."""
    return bool(re.fullmatch(r"[0-9a-f]{12}", token)) and not token.startswith(_HOST)
