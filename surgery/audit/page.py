"""The report as a page."""

from __future__ import annotations

from surgery.audit.report import Report


def page(report: Report) -> str:
    raise NotImplementedError
