"""What the weights in memory really are: every tensor hashed, and held against the base's.

The workbench says in words which edits are in the model. This is the check on those words; it knows
nothing of edits, only of bytes.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surgery.model import Model

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Proof:
    """changed: keys of tensors whose bytes are not the base's. checked: how many were hashed.

    digest: sha256 over all tensors as they are in memory, in the dtype the checkpoint stores.
    exact: False if memory holds fewer bits than the file, so that equal bytes cannot be asked for.
    """

    changed: tuple[str, ...]
    checked: int
    digest: str
    seconds: float
    exact: bool = True

    @property
    def is_base(self) -> bool:
        return self.exact and not self.changed


def prove(model: Model) -> Proof:
    """Hash every stored tensor of the model in memory, and compare with the base's hashes."""
    import torch

    from surgery.checkpoint.tensors import torch_dtype
    from surgery.stack import Lineage

    started = time.perf_counter()
    lineage = Lineage.of(model.checkpoint)
    changed: list[str] = []
    whole = hashlib.sha256()
    exact, checked = True, 0
    for key, ref in model.checkpoint.tensors.items():
        parameter = _parameter(model, key)
        if parameter is None:  # a buffer, or a head that is tied in memory
            continue
        stored = torch_dtype(ref.dtype)
        exact &= parameter.dtype in (stored, torch.float32)
        held = parameter.detach().to("cpu", stored).contiguous()
        digest = hashlib.sha256(held.view(torch.uint8).numpy().data).hexdigest()
        whole.update(f"{key}={digest};".encode())
        checked += 1
        if digest != lineage.original_hash(key):
            changed.append(key)
    return Proof(tuple(changed), checked, whole.hexdigest(), time.perf_counter() - started, exact)


def _parameter(model: Model, key: str) -> torch.nn.Parameter | None:
    from surgery.errors import SurgeryError

    try:
        return model.parameter(key)
    except SurgeryError:
        return None
