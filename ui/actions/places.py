"""The one folder the workbench writes to and serves files from."""

from __future__ import annotations

import os
from pathlib import Path


def export_folder() -> Path:
    """Where everything taken away lands: `SURGERY_EXPORTS`, else `out/workbench` in the current folder."""
    chosen = os.environ.get("SURGERY_EXPORTS")
    folder = Path(chosen).expanduser() if chosen else Path("out", "workbench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()
