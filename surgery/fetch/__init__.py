"""Known checkpoints: from their source to a local folder, every byte checked."""

from __future__ import annotations

from surgery.fetch.fetch import fetch, weights_folder
from surgery.fetch.registry import Registry

__all__ = ["Registry", "fetch", "weights_folder"]
