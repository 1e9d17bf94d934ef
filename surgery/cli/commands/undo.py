"""`surgery undo`: an edited folder without one of its edits, or without all."""

from __future__ import annotations

import argparse

from surgery.cli.outcome import Outcome

HELP = "write an edited folder without one edit, or its base back, byte for byte"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery undo`."""
    parser.add_argument("folder", metavar="DIR", help="the edited checkpoint")
    parser.add_argument(
        "--edit", metavar="ID", help="the edit to take out: its id, the start of it, or its name"
    )
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")
    parser.add_argument(
        "--later",
        choices=["refuse", "keep", "solve"],
        default="refuse",
        help="later edits that were solved on top of it: refuse (default), keep them as they are, "
        "or solve them again (loads the model)",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Undo, and say what is left."""
    from surgery.cli.commands.apply import written
    from surgery.cli.inputs import check_new_folder
    from surgery.stack.removal import undo

    check_new_folder(args.out, args.overwrite, args.folder)
    done = undo(args.folder, args.out, args.edit, later=args.later, overwrite=args.overwrite)
    return written(done)
