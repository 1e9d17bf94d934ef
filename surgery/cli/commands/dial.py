"""`surgery dial`: one direction at strengths from -1 to 1; refusal, damage, and the safe band."""

from __future__ import annotations

import argparse
from pathlib import Path

from surgery.cli.outcome import Outcome

HELP = "turn an ablate spec from -1 to 1: refusal, damage, incoherence, and the safe band"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery dial`."""
    parser.add_argument("spec", metavar="SPEC", help="a spec of one ablate edit")
    parser.add_argument("--base", metavar="DIR", help="the checkpoint (default: the spec's base)")
    parser.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        metavar="S",
        help="default: -1 to 1 in steps of a quarter; 0 is always measured",
    )
    parser.add_argument(
        "--limits",
        nargs="+",
        metavar="NAME=VALUE",
        default=[],
        help="what is still safe (default: incoherent=0.05 above the base, kl=0.15, perplexity=0.03)",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        action="append",
        help="as for surgery flinch (default: our set)",
    )
    parser.add_argument("--limit", type=int, default=24, help="prompts of each kind (default: 24)")
    parser.add_argument("--tokens", type=int, default=48, help="longest answer (default: 48)")
    parser.add_argument("--plot", metavar="FILE", help="picture of the curves, .svg or .png")
    parser.add_argument("--device", help="where to compute (default: CUDA, else MPS, else CPU)")


def run(args: argparse.Namespace) -> Outcome:
    """Measure every strength."""
    from surgery.cli.inputs import base_of, check_new_file
    from surgery.errors import SurgeryError
    from surgery.flinch import sets
    from surgery.spec import EditSpec

    spec = EditSpec.load(args.spec)
    base = base_of(args.base, spec, args.spec)
    if args.plot:
        check_new_file(args.plot)
    if min(args.limit, args.tokens) < 1:
        raise SurgeryError("--limit and --tokens are at least 1")
    items = sets.limited(sets.read_all(args.prompts), args.limit)

    from surgery.model import load
    from surgery.tune.dial import LIMITS, STRENGTHS, dial
    from surgery.tune.metrics import Bench
    from surgery.tune.picture import dial_table, draw_dial

    limits = {**LIMITS, **_limits(args.limits, list(LIMITS))}
    strengths = sorted({0.0, *(args.strengths or STRENGTHS)})
    model = load(base, device=args.device)
    found = dial(spec, model, Bench(model, items, args.tokens), strengths, limits)
    data, text = found.data(), dial_table(found)
    if args.plot:
        data["plot"] = str(draw_dial(found, Path(args.plot)))
        text += f"\n{data['plot']}"
    return Outcome(data, text)


def _limits(given: list[str], known: list[str]) -> dict[str, float]:
    from surgery.cli.inputs import limits_of
    from surgery.errors import SurgeryError

    limits = limits_of(given)
    for name in limits:
        if name not in known:
            raise SurgeryError(f"no limit {name!r}: there are {', '.join(known)}")
    return limits
