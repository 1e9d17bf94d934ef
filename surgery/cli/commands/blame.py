"""`surgery blame`: which edit of a stack did the damage, or broke one item."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from surgery.cli.outcome import Outcome

if TYPE_CHECKING:
    from surgery.audit.attribution import Attribution, Culprit

HELP = "which edit of a stack did the damage, by leaving out one at a time; or broke one item"

# How many of the items that broke are printed; --json has all of them.
_SHOWN = 12


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery blame`."""
    parser.add_argument("folder", metavar="DIR", help="the edited folder, or a base")
    parser.add_argument("deltas", nargs="*", metavar="DELTA", help="more edits on top, in order")
    parser.add_argument(
        "--item",
        metavar="TEXT",
        help="find the edit that broke this: an item's id, a part of its text, or any prompt",
    )
    parser.add_argument(
        "--answer",
        metavar="TEXT",
        help="with --item PROMPT: what was right to say (default: what the base says)",
    )
    parser.add_argument(
        "--suite", default="quick", metavar="NAME", help="quick, standard, full or a .yaml (quick)"
    )
    parser.add_argument("--no-cache", action="store_true", help="measure the base anew")
    parser.add_argument("--force", action="store_true", help="accept a delta of another base")


def run(args: argparse.Namespace) -> Outcome:
    """Load the model once, and take edits out of it in memory."""
    from surgery.errors import SurgeryError

    if args.answer is not None and args.item is None:
        raise SurgeryError("--answer goes with --item: say which prompt it answers")

    from dataclasses import asdict

    from surgery.audit.attribution import attribute, who_broke
    from surgery.audit.suite import Suite
    from surgery.delta import load_delta
    from surgery.model import load
    from surgery.stack import read_record, stack

    suite = Suite.load(args.suite)
    more = [load_delta(path) for path in args.deltas]
    model = load(args.folder)
    if not more and not read_record(model.checkpoint.path):
        raise SurgeryError(f"{args.folder} is not edited: name the deltas to choose from")
    deltas = [*stack(model), *more]
    if args.item is not None:
        found = who_broke(model, args.item, deltas, suite, args.answer)
        return Outcome(data=asdict(found), text=_culprit(found))
    shares = attribute(model, deltas, suite, cache=not args.no_cache, force=args.force)
    return Outcome(data=shares.to_dict(), text=_table(shares))


def _culprit(found: Culprit) -> str:
    after = "right again without it" if found.mended else "still wrong without it: others do it too"
    return (
        f"edit {found.place}, {found.name} ({found.edit[:12]}), broke {found.item}\n"
        f"  {' '.join(found.text.split())}\n"
        f"  before it: {found.before or '(something else)'}\n"
        f"  after it:  {found.after or '(something else)'}\n"
        f"  in the whole stack: {after}"
    )


def _table(found: Attribution) -> str:
    from surgery.audit.table import columns

    worst = found.shares[0]
    many = len(found.shares)
    lines = [
        f"{many} edit{'s' * (many != 1)}: KL {found.kl:.4f} nats a token, perplexity "
        f"{found.perplexity_base:.4g} before and {found.perplexity:.4g} after, "
        f"{len(found.failed)} items broken",
        f"most of it: edit {worst.place}, {worst.name} ({worst.edit[:12]}); without it KL "
        f"{worst.kl_without:.4f}, {worst.lost} of those items right again",
        "",
    ]
    head = ("edit", "adds KL", "KL without", "adds perplexity", "items lost", "won")
    rows = [
        (
            f"{share.place} {share.name}",
            f"{share.kl:+.4f}",
            f"{share.kl_without:.4f}",
            f"{share.perplexity:+.3g}",
            str(share.lost),
            str(share.won),
        )
        for share in found.shares
    ]
    lines += columns([head, *rows])
    if found.failed:
        lines += ["", "broken (and the edits without which it is right):"]
    for item in found.failed[:_SHOWN]:
        who = ", ".join(str(place) for place in item.edits) or "no single one"
        text = " ".join(item.text.split())
        lines.append(f"  {item.id} [{who}]: {text[:60]} {item.gold!r}, now {item.answer!r}")
    if len(found.failed) > _SHOWN:
        lines.append(f"  and {len(found.failed) - _SHOWN} more (--json has them)")
    return "\n".join([*lines, *found.notes])
