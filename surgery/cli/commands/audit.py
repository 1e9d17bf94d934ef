"""`surgery audit`: what an edit did, and what else it broke."""

from __future__ import annotations

import argparse
import json

from surgery.cli.inputs import check_new_file, limits_of, suite_arguments
from surgery.cli.outcome import REJECTED, Outcome

HELP = "measure what an edit did and what else it broke, against controls"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery audit`."""
    parser.add_argument("base", metavar="BASE", help="the checkpoint folder before the edit")
    parser.add_argument(
        "edited", nargs="+", metavar="EDITED|DELTA", help="the edited folder, or deltas in order"
    )
    parser.add_argument(
        "--spec", metavar="SPEC", help="facts and limits (default: the deltas' own)"
    )
    suite_arguments(parser)
    parser.add_argument(
        "--items", type=int, metavar="N", help="at most so many items of a task, passages of a text"
    )
    parser.add_argument("--gate", action="store_true", help="exit with 3 if the edit is rejected")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page")
    parser.add_argument("-o", "--out", metavar="FILE", help="write the report as JSON")
    parser.add_argument(
        "--prompts", metavar="FILE", help="more prompts to answer before and after, one a line"
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a limit of the gate, such as kl_mean=0.05; may be given more than once",
    )
    parser.add_argument("--no-cache", action="store_true", help="measure the base anew")
    parser.add_argument("--force", action="store_true", help="accept a delta of another base")


def run(args: argparse.Namespace) -> Outcome:
    """Audit, write the report where asked, and print it."""
    from surgery.audit import Suite, audit
    from surgery.spec import EditSpec, read_prompts

    for file in (args.html, args.out):
        if file:
            check_new_file(file)
    limits = limits_of(args.limit)
    spec = EditSpec.load(args.spec) if args.spec else None
    suite = args.suite or (spec.checks.suite if spec else None) or "quick"
    report = audit(
        base=args.base,
        edited=args.edited[0] if len(args.edited) == 1 else args.edited,
        spec=spec,
        suite=Suite.load(suite, args.data, args.items),
        prompts=read_prompts(args.prompts) if args.prompts else None,
        limits=limits,
        cache=not args.no_cache,
        force=args.force,
    )
    written = [path for path in (args.out, args.html) if path]
    if args.out:
        report.save(args.out)
    if args.html:
        from pathlib import Path

        from surgery.checkpoint import atomic_file

        page = report.html()
        with atomic_file(Path(args.html)) as temporary:
            Path(temporary).write_text(page, encoding="utf-8")
    code = REJECTED if args.gate and report.verdict.decision == "reject" else 0
    text = report.text() + "".join(f"\nreport: {path}" for path in written)
    return Outcome(data=json.loads(report.to_json()), text=text, code=code)
