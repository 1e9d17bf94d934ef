"""`surgery apply`: deltas onto a checkpoint folder. No model is loaded."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from surgery.cli.outcome import Outcome

if TYPE_CHECKING:
    from surgery.stack import Applied

HELP = "write an edited checkpoint: a base with deltas on it; no model is loaded"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery apply`."""
    parser.add_argument("deltas", nargs="+", metavar="DELTA", help="delta files, in order")
    parser.add_argument(
        "--base", metavar="DIR", required=True, help="the checkpoint, edited or not"
    )
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")
    parser.add_argument(
        "--force", action="store_true", help="accept a base or an order it was not solved for"
    )
    parser.add_argument(
        "--link",
        choices=["reflink", "copy", "hard"],
        default="reflink",
        help="how untouched files get there (default: share blocks where the disk can, else copy)",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Apply, and say what changed."""
    from surgery.cli.inputs import check_new_folder
    from surgery.stack import apply

    check_new_folder(args.out, args.overwrite, args.base)
    done = apply(
        args.deltas,
        base=args.base,
        out=args.out,
        overwrite=args.overwrite,
        force=args.force,
        link=args.link,
    )
    return written(done)


def written(done: Applied) -> Outcome:
    """What `surgery.stack.apply` and `undo` made, for people and for programs."""
    data = {
        "path": str(done.path),
        "edits": done.edits,
        "changed": done.changed,
        "warnings": done.warnings,
    }
    edits, tensors = len(done.edits), len(done.changed)
    what = (
        f"{edits} edit{'s' * (edits != 1)}, {tensors} tensor{'s' * (tensors != 1)} changed "
        "against the base"
        if edits
        else "the base, without edits"
    )
    lines = [f"{done.path}: {what}", *(f"note: {warning}" for warning in done.warnings)]
    return Outcome(data=data, text="\n".join(lines))
