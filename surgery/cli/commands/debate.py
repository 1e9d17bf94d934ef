"""`surgery debate`: two checkpoints argue; who gives way, and when."""

from __future__ import annotations

import argparse

from surgery.cli.outcome import Outcome

HELP = "two checkpoints argue a question under a rule; who gives way, and when"
# The names of surgery.compare.RULES, written out so that --help needs no torch.
RULES = ("must_agree", "must_not", "stay_truthful")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery debate`."""
    parser.add_argument("a", metavar="A", help="a checkpoint folder, or DIR+DELTA; speaks first")
    parser.add_argument("b", metavar="B", help="the other one")
    parser.add_argument("--question", metavar="Q", required=True, help="what they argue about")
    parser.add_argument(
        "--rule",
        choices=[*RULES, *(rule.replace("_", "-") for rule in RULES if "_" in rule)],
        default="stay_truthful",
        metavar="RULE",
        help=f"{', '.join(RULES)} (default: stay_truthful)",
    )
    parser.add_argument("--turns", type=int, default=6, help="how often somebody speaks (6)")
    parser.add_argument("--position-a", metavar="TEXT", help="what A defends (default: its answer)")
    parser.add_argument("--position-b", metavar="TEXT", help="what B defends (default: its answer)")
    parser.add_argument("--tokens", type=int, default=60, help="longest turn (60)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (0)")
    parser.add_argument("--seed", type=int, default=0, help="seed when sampling (0)")
    parser.add_argument("--device", help="where to compute, such as cpu or cuda")


def run(args: argparse.Namespace) -> Outcome:
    """Debate, and print who said what and where both stood after it."""
    from surgery.compare import Pool, debate
    from surgery.errors import SurgeryError

    if (args.position_a is None) != (args.position_b is None):
        raise SurgeryError("give both --position-a and --position-b, or neither")
    given = (args.position_a, args.position_b) if args.position_a is not None else None
    found = debate(
        args.a,
        args.b,
        args.question,
        rule=args.rule.replace("-", "_"),
        turns=args.turns,
        seed=args.seed,
        temperature=args.temperature,
        max_new_tokens=args.tokens,
        positions=given,
        pool=Pool(capacity=2, device=args.device),
    )
    lines = [f"{found.question}   (rule: {found.rule.replace('_', ' ')})", ""]
    for letter, name, position, held in zip(
        "AB", found.sides, found.positions, found.held, strict=True
    ):
        lines.append(f"  {letter} = {name}: {position}   holds {held:.0%}")
    lines += ["", "turn  A holds  B holds"]
    for turn in found.turns:
        gave = [s for s in (0, 1) if found.gave_way[s] == turn.number]
        mark = "".join(f"   <- {'AB'[s]} gives way" for s in gave)
        lines.append(
            f"{turn.number:>4}  {turn.held[0]:>7.0%}  {turn.held[1]:>7.0%}  "
            f"{'AB'[turn.speaker]}: {turn.text}{mark}"
        )
    lines += ["", found.outcome, *found.notes]
    lines.append("holds: share of probability of a side's own first answer against the other's.")
    return Outcome(data=found.as_dict(), text="\n".join(lines))
