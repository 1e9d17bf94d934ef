"""The header of a safetensors file, read and checked without any tensor library.

The format: 8 bytes, little endian, the length n of the header; n bytes of JSON that map each
tensor's name to its dtype, shape and byte range; then the tensors' bytes, one after the other
without holes.
(https://huggingface.co/docs/safetensors, section "Format".)
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError

__all__ = ["DTYPE_BITS", "TensorRef", "read_header"]

# Width of one element in bits, for every dtype the format knows.
DTYPE_BITS: dict[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}

# The same limit as the reference reader: a longer header is damage or an attack.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorRef:
    """Where one tensor lies: `file`, and absolute byte offsets `begin` to `end` in it.

    `dtype` is spelt as in the file ("F32", "BF16", ...); `shape` is as on disk.
    """

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.begin


def read_header(file: str | Path) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """Return the tensors of a safetensors file, in the order of their bytes, and its metadata.

    Raises:
        SurgeryError: the file cannot be read, is cut short, or its header does not describe it.
    """
    file = Path(file)
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            if len(start) < 8:
                raise SurgeryError(f"{file} is truncated: {size} bytes, not even a header length")
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise SurgeryError(
                    f"{file} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`"
                )
            if length > _LONGEST_HEADER:
                raise SurgeryError(
                    f"{file} is damaged or no safetensors file: its header claims {length:,} bytes"
                )
            if 8 + length > size:
                raise SurgeryError(
                    f"{file} is truncated: its header takes {length:,} bytes, the file has {size:,}"
                )
            raw = stream.read(length)
    except OSError as error:
        raise SurgeryError(f"cannot read {file}: {error.strerror or error}") from error
    return _parse(file, raw, size)


def _parse(file: Path, raw: bytes, size: int) -> tuple[dict[str, TensorRef], dict[str, str]]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SurgeryError(f"{file} has a damaged header: {_one_line(reason)}") from error
    if not isinstance(header, dict):
        raise SurgeryError(f"{file} has a damaged header: it is not a JSON object")

    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise SurgeryError(f"{file} has a damaged header: __metadata__ does not map text to text")

    data = 8 + len(raw)
    refs = sorted(
        (_entry(file, key, entry, data) for key, entry in header.items()),
        key=lambda ref: (ref.begin, ref.end),
    )
    end = data
    for ref in refs:
        if ref.end > size:
            raise SurgeryError(
                f"{file} is truncated: tensor {_name(ref.key)} ends at byte {ref.end:,}, "
                f"the file has {size:,}"
            )
        if ref.begin != end:
            problem = "overlaps" if ref.begin < end else "leaves a hole after"
            raise SurgeryError(
                f"{file} has a damaged header: tensor {_name(ref.key)} at byte {ref.begin:,} "
                f"{problem} the one before it"
            )
        end = ref.end
    if end != size:
        raise SurgeryError(
            f"{file} is damaged: its tensors end at byte {end:,}, the file has {size:,}"
        )
    return {ref.key: ref for ref in refs}, metadata


def _entry(file: Path, key: str, entry: Any, data: int) -> TensorRef:
    """One tensor of the header; `data` is where the tensors' bytes begin."""

    def damaged(what: str) -> SurgeryError:
        return SurgeryError(f"{file} has a damaged header: tensor {_name(key)} {what}")

    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise damaged("has a name that is not text") from error
    if not isinstance(entry, dict):
        raise damaged("is not described")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise damaged("has no proper dtype")
    if dtype not in DTYPE_BITS:
        raise damaged(f"has the unknown dtype {_name(dtype)}")
    if not isinstance(shape, list) or not all(_is_count(n) for n in shape):
        raise damaged("has no proper shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise damaged("has no proper data_offsets")
    begin, end = offsets
    if begin > end:
        raise damaged(f"begins at byte {begin:,}, after its end at {end:,}")
    if _bits(shape, dtype) != 8 * (end - begin):
        raise damaged(
            f"has shape {tuple(shape[:8])} in {dtype}, which {end - begin:,} bytes cannot hold"
        )
    return TensorRef(file, key, dtype, tuple(shape), data + begin, data + end)


def _bits(shape: list[int], dtype: str) -> int:
    if 0 in shape:
        return 0
    bits = DTYPE_BITS[dtype]
    for n in shape:
        bits *= n
        # No file is that large, and an endless product of huge numbers would take forever.
        if bits > 2**70:
            break
    return bits


def _is_count(value: Any) -> bool:
    # bool is a subclass of int; the upper bound keeps absurd numbers out of messages and sums.
    return type(value) is int and 0 <= value < 2**63


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _name(text: str) -> str:
    """A name from a file that may be hostile, short and printable."""
    return ascii(text if len(text) <= 200 else text[:200] + "...")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
