"""Taking things away: spec, delta, adapter, checkpoint, report. Everything lands in one folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError
from ui.actions import commands, damage
from ui.actions.places import export_folder
from ui.naming import label
from ui.session import Bench

# Larger results stay on disk, and the screen says where: nobody wants them through a browser.
LARGEST = 512 << 20


@dataclass(frozen=True)
class Taken:
    """What was written, what it says on the screen, and the files small enough to hand over."""

    path: Path
    said: str
    files: list[str]


def spec(bench: Bench) -> Callable[[], Taken]:
    """Every edit that is on, as a spec each, with all choices filled in."""

    def work() -> Taken:
        from surgery.spec import EditSpec

        found = []
        for delta in _some(bench):
            if not delta.metadata.get("spec"):
                continue
            path = export_folder() / f"{commands.stem(label(delta))}-{delta.id[:8]}.yaml"
            EditSpec.model_validate(delta.metadata["spec"]).save(path)
            found.append(path)
        if not found:
            raise SurgeryError("the edits that are on hold no spec: they came as deltas")
        return Taken(found[0], f"{_count(found, 'spec')} written.", [str(p) for p in found])

    return work


def deltas(bench: Bench) -> Callable[[], Taken]:
    """Every edit that is on, as a delta file each, in order."""

    def work() -> Taken:
        from surgery.delta import save_delta

        paths = [
            save_delta(delta, export_folder() / name)
            for delta, name in zip(_some(bench), commands.stack_files(bench), strict=True)
        ]
        return Taken(paths[0], f"{_count(paths, 'delta')} written.", _small(paths))

    return work


def adapter(bench: Bench) -> Callable[[], Taken]:
    """Everything that is on as one LoRA adapter, as a folder and zipped."""

    def work() -> Taken:
        from surgery.export import to_lora

        edits = _some(bench)
        whole = edits[0] if len(edits) == 1 else bench.combined(edits)
        out = export_folder() / f"{commands.stem(bench.name)}-{whole.id[:8]}-lora"
        to_lora(whole, out, base=bench.path, overwrite=True)
        packed = shutil.make_archive(str(out), "zip", out)
        return Taken(
            out, "The adapter is written; PEFT loads it on the base.", _small([Path(packed)])
        )

    return work


def checkpoint(bench: Bench) -> Callable[[], Taken]:
    """The whole edited checkpoint, with its lineage beside it."""

    def work() -> Taken:
        from surgery.stack import Lineage
        from surgery.stack.disk import rebuild

        edits = bench.on
        ids = "-".join(delta.id[:6] for delta in edits[:3]) or "base"
        out = export_folder() / f"{commands.stem(bench.name)}-{ids}"
        done = rebuild(Lineage.of(bench.model.checkpoint), edits, out, overwrite=True, force=True)
        changed = len(done.changed)
        return Taken(
            out,
            f"The checkpoint is written: {changed} tensor{'' if changed == 1 else 's'} changed against "
            "the base. Plain transformers loads it; it holds what is needed to undo every edit.",
            [],
        )

    return work


def report(id: str) -> Callable[[], Taken]:
    """The last report of this window, as a page and as JSON."""

    def work() -> Taken:
        found = damage.REPORTS.get(id or "")
        if found is None:
            raise SurgeryError("there is no report yet: measure the damage first")
        paths = [export_folder() / f"report-{id[:8]}{end}" for end in (".html", ".json")]
        for path in paths:
            found.save(path)
        return Taken(paths[0], "The report is written.", [str(path) for path in paths])

    return work


def _some(bench: Bench) -> list[Any]:
    if not bench.here:
        raise SurgeryError("no edit made here is switched on: there is nothing to take away")
    return bench.here


def _small(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths if path.stat().st_size <= LARGEST]


def _count(items: list[Any], what: str) -> str:
    return f"One {what}" if len(items) == 1 else f"{len(items)} {what}s"
