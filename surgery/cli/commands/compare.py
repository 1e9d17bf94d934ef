"""`surgery compare`: reports side by side."""

from __future__ import annotations

import argparse

from surgery.cli.outcome import Outcome

HELP = "put the figures of several audit reports side by side"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery compare`."""
    parser.add_argument(
        "reports", nargs="+", metavar="REPORT", help="report files (JSON), or edited folders"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Read and lay out. No model is needed."""
    from surgery.audit.beside import beside, beside_data
    from surgery.audit.report import Report

    paths = [_file(path) for path in args.reports]
    reports = [Report.load(path) for path in paths]
    return Outcome(data=beside_data(reports, paths), text=beside(reports, paths))


def _file(path: str) -> str:
    """The report of an edited folder lies in it as report.json."""
    from pathlib import Path

    inside = Path(path) / "report.json"
    return str(inside) if inside.is_file() else path
