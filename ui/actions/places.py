"""The one folder the workbench writes to and serves files from."""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def export_folder() -> Path:
    """Where everything taken away lands: `SURGERY_EXPORTS`, else a new folder for temporary files."""
    chosen = os.environ.get("SURGERY_EXPORTS")
    folder = (
        Path(chosen).expanduser() if chosen else Path(tempfile.mkdtemp(prefix="surgery-exports-"))
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()
