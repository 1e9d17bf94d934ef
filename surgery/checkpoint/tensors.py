"""Between the bytes of a safetensors file and torch tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from surgery.checkpoint.header import DTYPE_BITS, TensorRef
from surgery.errors import SurgeryError

if TYPE_CHECKING:
    import torch

__all__ = [
    "dtype_name",
    "is_finite",
    "read_tensor",
    "stream_tensors",
    "tensor_bytes",
    "torch_dtype",
]

_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "C64": "complex64",
}

# Elements looked at in one go: a whole-tensor mask would cost another quarter to whole of its size.
_SLICE = 1 << 24


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype such as "BF16"; SurgeryError where torch has none."""
    import torch

    dtype = getattr(torch, _TORCH_NAMES.get(name, ""), None)
    if dtype is None:
        raise SurgeryError(f"tensors of dtype {name} cannot be edited: torch has no such dtype")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype, such as "BF16"."""
    name = str(dtype).removeprefix("torch.")
    for safetensors_name, torch_name in _TORCH_NAMES.items():
        if torch_name == name:
            return safetensors_name
    raise SurgeryError(f"tensors of dtype {name} cannot be stored in a safetensors file")


def read_tensor(stream: BinaryIO, ref: TensorRef) -> torch.Tensor:
    """Read exactly the bytes of `ref` into a fresh CPU tensor of the stored dtype and shape."""
    import torch

    dtype = torch_dtype(ref.dtype)
    buffer = torch.empty(ref.nbytes, dtype=torch.uint8)
    stream.seek(ref.begin)
    if stream.readinto(buffer.numpy()) != ref.nbytes:  # type: ignore[attr-defined]
        raise SurgeryError(f"{ref.file} is truncated: tensor {ref.key} is not all there")
    return (
        buffer.view(dtype).reshape(ref.shape) if ref.nbytes else torch.empty(ref.shape, dtype=dtype)
    )


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes as a safetensors file stores them: row-major, on the CPU."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data


def stream_tensors(
    file: Path, refs: Mapping[str, TensorRef], read: Callable[[str], torch.Tensor]
) -> None:
    """Write a safetensors file one tensor at a time: never more than one of them is in memory.

    refs: dtype and shape of each. read: makes the tensor of a key.
    """
    header, end = {}, 0
    # Wide dtypes first, so that every tensor is aligned.
    order = sorted(refs, key=lambda key: (-DTYPE_BITS[refs[key].dtype], key))
    for key in order:
        ref = refs[key]
        begin, end = end, end + ref.nbytes
        header[key] = {"dtype": ref.dtype, "shape": ref.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for key in header:
            stream.write(tensor_bytes(read(key)))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; small floats are judged through fp32."""
    import torch

    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    for part in tensor.detach().reshape(-1).split(_SLICE):
        wide = part.float() if part.dtype.itemsize == 1 else part
        if not bool(torch.isfinite(wide).all()):
            return False
    return True
