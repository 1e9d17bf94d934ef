"""`surgery crosscheck`: how true one checkpoint holds what another one says."""

from __future__ import annotations

import argparse

from surgery.cli.commands.answers import prompts_of
from surgery.cli.outcome import Outcome

HELP = "how true one checkpoint holds what another one says"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery crosscheck`."""
    parser.add_argument("a", metavar="A", help="who speaks: a checkpoint folder, or DIR+DELTA")
    parser.add_argument("--by", metavar="B", required=True, help="who judges")
    parser.add_argument(
        "--prompts", metavar="F", action="append", help=".txt one a line, or .jsonl / .csv"
    )
    parser.add_argument("--prompt", metavar="P", action="append", help="a single prompt")
    parser.add_argument("--tokens", type=int, default=40, help="longest answer (40)")
    parser.add_argument("--device", help="where to compute, such as cpu or cuda")


def run(args: argparse.Namespace) -> Outcome:
    """Check, and print every statement with how true it is held."""
    prompts = prompts_of(args)
    from surgery.compare import Pool, crosscheck

    found = crosscheck(
        args.a, args.by, prompts, max_new_tokens=args.tokens, pool=Pool(device=args.device)
    )
    lines = [f"{found.speaker} speaks, {found.judge} judges", "", "  held"]
    for one in sorted(found.statements, key=lambda s: (not s.denied, -s.gap)):
        held = "  -  " if one.held is None else f"{one.held:>5.0%}"
        mark = "DENIED" if one.denied else "refused" if one.refused else ""
        lines.append(f" {held}  {mark:<7} {one.prompt}")
        lines.append(f"                {one.text}")
        if one.denied:
            word = f" at “{one.word}”" if one.word else ""
            lines.append(
                f"                {found.judge}: {one.by_own}   ({one.gap:.1f} nats apart{word})"
            )
    lines += ["", f"{len(found.denied)} of {len(found.statements)} asserted and denied"]
    told = ", ".join(f"{i.name} AUC {i.auc:.2f}" for i in found.instruments if i.auc is not None)
    lines += (
        [f"how well {found.judge} tells its own answers from false ones: {told}"] if told else []
    )
    return Outcome(data=found.as_dict(), text="\n".join([*lines, *found.notes]))
