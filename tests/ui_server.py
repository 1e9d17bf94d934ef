"""The workbench served on a free port of this computer, for tests."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ui.app import launch_options, page, quiet_environment
from ui.session import Bench


@contextlib.contextmanager
def served(base: Path | None = None, **options: Any) -> Iterator[tuple[str, Bench]]:
    """Its address without the last slash, and the bench behind it."""
    before = dict(os.environ)
    exports = tempfile.TemporaryDirectory()
    os.environ["SURGERY_EXPORTS"] = exports.name
    quiet_environment()
    bench = Bench()
    if base is not None:
        bench.open(base)
    demo = page(bench)
    demo.launch(
        server_name="127.0.0.1",
        prevent_thread_lock=True,
        quiet=True,
        inbrowser=False,
        **{**launch_options(), **options},
    )
    try:
        yield str(demo.local_url).rstrip("/"), bench
    finally:
        demo.close()
        exports.cleanup()
        os.environ.clear()
        os.environ.update(before)
