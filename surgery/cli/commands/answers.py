"""`surgery answers`: the same prompts to several checkpoints."""

from __future__ import annotations

import argparse
from typing import Any

from surgery.cli.outcome import Outcome

HELP = "the same prompts to several checkpoints, side by side"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery answers`."""
    parser.add_argument(
        "checkpoints",
        metavar="DIR",
        nargs="+",
        help="checkpoint folders, or DIR+DELTA for one with edits",
    )
    parser.add_argument(
        "--prompts", metavar="F", action="append", help=".txt one a line, or .jsonl / .csv"
    )
    parser.add_argument("--prompt", metavar="P", action="append", help="a single prompt")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt for all")
    parser.add_argument("--no-chat", action="store_true", help="continue the prompts as they are")
    parser.add_argument("--tokens", type=int, default=60, help="longest answer (60)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (0)")
    parser.add_argument("--seed", type=int, default=0, help="seed when sampling (0)")
    parser.add_argument("--changed", action="store_true", help="the largest differences first")
    parser.add_argument("--device", help="where to compute, such as cpu or cuda")


def prompts_of(args: argparse.Namespace) -> list[str]:
    """The prompts of --prompts files and --prompt texts, in that order."""
    from surgery.errors import SurgeryError
    from surgery.spec import read_prompts

    found = [p for file in args.prompts or () for p in read_prompts(file)]
    found += args.prompt or []
    if not found:
        raise SurgeryError("no prompts: give --prompts FILE or --prompt TEXT")
    return found


def run(args: argparse.Namespace) -> Outcome:
    """Ask, and print the answers under each prompt."""
    prompts = prompts_of(args)
    from surgery.compare import Pool, answers

    found = answers(
        args.checkpoints,
        prompts,
        max_new_tokens=args.tokens,
        chat=not args.no_chat,
        system=args.system,
        temperature=args.temperature,
        seed=args.seed,
        pool=Pool(device=args.device),
    )
    wide = max(len(name) for name in found.sides)
    lines: list[str] = []
    for row in found.changed_first if args.changed else found.rows:
        mark = (
            "" if len(found.sides) == 1 else "  [same]" if row.agree else f"  [{row.agreement:.0%}]"
        )
        lines += [f"> {row.prompt}{mark}"]
        for index, (name, text) in enumerate(zip(found.sides, row.answers, strict=True)):
            flag = " (refuses)" if row.refused[index] else ""
            shown = text if index == 0 else marked(row.diff(index))
            lines.append(f"  {name:<{wide}}{flag}  {' '.join(shown.split())}")
        lines.append("")
    same = sum(row.agree for row in found.rows)
    refusals = ", ".join(
        f"{name} refuses {count}" for name, count in zip(found.sides, found.refusals, strict=True)
    )
    lines.append(f"{same} of {len(found.rows)} answers the same; {refusals}")
    return Outcome(data=found.as_dict(), text="\n".join(lines))


def marked(diff: list[tuple[str, Any]]) -> str:
    """The second text of a word difference, with what is new in it in [brackets]."""
    return " ".join(f"[{text}]" if op == "added" else text for text, op in diff if op != "removed")
