"""`surgery ladder`: whether old answers are gone from an edited model, or only hidden."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from surgery.cli.outcome import Outcome

if TYPE_CHECKING:
    from surgery.spec import Fact

HELP = "hidden or gone? ask for old answers in ever more forceful ways"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery ladder`."""
    parser.add_argument("base", metavar="BASE", help="the checkpoint folder before the edit")
    parser.add_argument(
        "edited", nargs="+", metavar="EDITED|DELTA", help="the edited folder, or deltas in order"
    )
    parser.add_argument(
        "--facts",
        metavar="FILE",
        help="facts that were changed or forgotten: a list of facts, or a spec (default: those the "
        "edits were solved for)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="24 facts, one control each, 5 and 20 steps"
    )
    parser.add_argument(
        "--rungs", nargs="+", metavar="RUNG", help="only these, such as direct paraphrase int4"
    )
    parser.add_argument("--html", metavar="FILE", help="write the result as a page")
    parser.add_argument("-o", "--out", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--seed", type=int, default=0, help="seed of halves and twins (0)")
    parser.add_argument("--no-cache", action="store_true", help="ask the base anew, keep nothing")
    parser.add_argument("--force", action="store_true", help="accept a delta of another base")


def run(args: argparse.Namespace) -> Outcome:
    """Climb, write the page where asked, and print the table."""
    import json
    from pathlib import Path

    from surgery.checkpoint import atomic_file
    from surgery.cli.inputs import check_new_file

    for file in (args.html, args.out):
        if file:
            check_new_file(file)
    facts = facts_of(args.facts) if args.facts else None

    from surgery.ladder import ladder

    found = ladder(
        args.base,
        args.edited[0] if len(args.edited) == 1 else args.edited,
        facts,
        quick=args.quick,
        rungs=args.rungs,
        seed=args.seed,
        force=args.force,
        cache=not args.no_cache,
    )
    data, lines = found.as_dict(), [found.text()]
    for file, content in (
        (args.html, found.html() if args.html else ""),
        (args.out, json.dumps(data, indent=1, ensure_ascii=False) + "\n"),
    ):
        if file:
            with atomic_file(Path(file)) as temporary:
                Path(temporary).write_text(content, encoding="utf-8")
            lines.append(f"written: {file}")
    return Outcome(data=data, text="\n".join(lines))


def facts_of(file: str) -> list[Fact]:
    """The facts of a list or of a spec.

    Raises:
        SurgeryError: unreadable, or a spec that changes no facts.
    """
    from surgery.errors import SurgeryError
    from surgery.spec import EditSpec, read_facts

    if not file.endswith((".yaml", ".yml")):
        return read_facts(file)
    found: list[Fact] = []
    for edit in EditSpec.load(file).edits:
        facts = getattr(edit, "facts", None) or ()
        found += read_facts(facts) if isinstance(facts, str) else facts
    if not found:
        raise SurgeryError(f"{file} changes no facts")
    return found
