"""Reports side by side: several edits, or several methods for the same edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.audit.report import Report
from surgery.audit.table import columns, row


def names(reports: Sequence[Report], paths: Sequence[str] = ()) -> list[str]:
    """A short name for each: its spec's or edits' name, its file's where those are not distinct."""
    found = []
    for report in reports:
        spec = (report.spec or {}).get("name")
        edits = [str(edit.get("name")) for edit in report.edited.edits if edit.get("name")]
        found.append(str(spec or "+".join(edits) or Path(report.edited.path or "edit").name))
    if len(set(found)) < len(found):
        found = [
            Path(path).stem if found.count(name) > 1 else name
            for name, path in zip(found, paths or found, strict=True)
        ]
    if len(set(found)) < len(found):
        found = [f"{number}: {name}" for number, name in enumerate(found, start=1)]
    return found


def warnings(reports: Sequence[Report]) -> list[str]:
    """Why figures may not be comparable: another base, another suite."""
    found = []
    if len({report.base.id for report in reports}) > 1:
        found.append("these reports are about different bases")
    if len({report.suite_id for report in reports}) > 1:
        found.append("these reports were measured with different suites")
    return found


def beside(reports: Sequence[Report], paths: Sequence[str] = ()) -> str:
    """One column a report, one row a figure; what the base had comes first."""
    titles = names(reports, paths)
    order: dict[str, str] = {}
    for report in reports:
        for figure in report.figures:
            # The layer that is furthest off differs from report to report.
            label = "hidden-state length" if figure.name == "hidden_norm" else row(figure)[0]
            order.setdefault(figure.name, label)
    rows = [["", "before", *titles], ["verdict", "", *[r.verdict.decision for r in reports]]]
    for name, label in order.items():
        cells = [{f.name: row(f) for f in report.figures}.get(name) for report in reports]
        # The same base gives the same number before, unless the edits ask about different things.
        before = {cell[1] for cell in cells if cell is not None}
        shown = before.pop() if len(before) == 1 else "varies"
        rows.append([label, shown, *[cell[2] if cell is not None else "-" for cell in cells]])
    seconds = [f"{r.seconds.get('total', 0):.0f}" for r in reports]
    rows.append(["seconds to audit", "", *seconds])
    lines = columns(rows)
    for title, report in zip(titles, reports, strict=True):
        lines.append(f"{title}: {report.verdict.reason}")
    return "\n".join([*lines, *[f"note: {text}" for text in warnings(reports)]])


def beside_data(reports: Sequence[Report], paths: Sequence[str] = ()) -> dict[str, Any]:
    """The same for machines."""
    return {
        "reports": [
            {"name": name, "path": path, **report.summary()}
            for name, path, report in zip(
                names(reports, paths), paths or [""] * len(reports), reports, strict=True
            )
        ],
        "notes": warnings(reports),
    }
