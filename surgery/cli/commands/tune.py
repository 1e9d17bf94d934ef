"""`surgery tune`: search an ablate spec's numbers; the front, and the chosen point as a spec."""

from __future__ import annotations

import argparse
from pathlib import Path

from surgery.cli.outcome import Outcome

HELP = "search strengths, layers and direction of an ablate spec; Pareto front"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery tune`."""
    parser.add_argument("spec", metavar="SPEC", help="a spec with an ablate edit")
    parser.add_argument("--base", metavar="DIR", help="the checkpoint (default: the spec's base)")
    parser.add_argument(
        "--objective",
        metavar="METRIC",
        nargs="+",
        default=["safe_refusals", "unsafe_refusals", "kl"],
        help="one to three of safe_refusals, unsafe_refusals, harmless_refusals, incoherent, kl, "
        "perplexity, each with min: or max: before it if its usual way is not meant "
        "(default: safe_refusals unsafe_refusals kl)",
    )
    parser.add_argument("-o", "--out", metavar="SPEC", help="write the chosen point as a spec")
    parser.add_argument("--trials", type=int, default=30, help="trials to add (default: 30)")
    parser.add_argument(
        "--journal",
        metavar="FILE",
        help="keep the trials there: a search goes on where it was, several processes may share it",
    )
    parser.add_argument(
        "--search",
        nargs="+",
        metavar="WHAT",
        default=["strength", "layers", "direction"],
        help="any of strength, layers, direction (default: all)",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        action="append",
        help="as for surgery flinch (default: our set)",
    )
    parser.add_argument("--limit", type=int, default=16, help="prompts of each kind (default: 16)")
    parser.add_argument("--tokens", type=int, default=24, help="longest answer (default: 24)")
    parser.add_argument("--plot", metavar="FILE", help="picture of the front, .svg or .png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="where to compute (default: CUDA, else MPS, else CPU)")


def run(args: argparse.Namespace) -> Outcome:
    """Search, show the front, write the chosen spec."""
    from surgery.cli.inputs import base_of, check_new_file
    from surgery.errors import SurgeryError
    from surgery.flinch import sets
    from surgery.spec import EditSpec

    spec = EditSpec.load(args.spec)
    base = base_of(args.base, spec, args.spec)
    for file in (args.out, args.plot):
        if file:
            check_new_file(file)
    if not 1 <= len(args.objective) <= 3:
        raise SurgeryError(f"{len(args.objective)} objectives: one to three can be traded off")
    if min(args.trials, args.limit, args.tokens) < 1:
        raise SurgeryError("--trials, --limit and --tokens are at least 1")
    items = sets.limited(sets.read_all(args.prompts), args.limit)

    from surgery.model import load
    from surgery.tune.metrics import Bench, objective
    from surgery.tune.picture import draw_front, front_table
    from surgery.tune.study import tune

    objectives = [objective(text) for text in args.objective]
    model = load(base, device=args.device)
    bench = Bench(model, items, args.tokens)
    tuned = tune(
        spec,
        model,
        bench,
        objectives,
        trials=args.trials,
        journal=args.journal,
        search=args.search,
        seed=args.seed,
    )
    data = tuned.data()
    lines = [front_table(tuned)]
    if args.plot:
        data["plot"] = str(draw_front(tuned, Path(args.plot)))
        lines.append(data["plot"])
    if args.out:
        tuned.chosen.spec.save(args.out)
        data["spec"] = args.out
        lines.append(f"{args.out}: trial {tuned.chosen.number}")
    return Outcome(data, "\n".join(lines))
