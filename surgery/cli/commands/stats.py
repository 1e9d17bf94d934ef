"""`surgery stats`: second moments of a text, which fact edits are solved against."""

from __future__ import annotations

import argparse

from surgery.cli.outcome import Outcome

HELP = "collect second moments of a text for all layers, resumable"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery stats`."""
    parser.add_argument("--base", metavar="DIR", required=True, help="the checkpoint")
    parser.add_argument(
        "--text", metavar="FILE", help="a .txt or .jsonl, or a folder of them (default: our own)"
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="how many to run (default: 10 x the inner width)"
    )
    parser.add_argument("--layers", metavar="LIST", help="such as 0,4,8-11 (default: all)")
    parser.add_argument("--device", help="where to compute (default: CUDA, else MPS, else CPU)")


def run(args: argparse.Namespace) -> Outcome:
    """Collect or find the statistics, and say whether they are enough to solve against."""
    from surgery.cli.inputs import layers_of
    from surgery.errors import SurgeryError

    layers = layers_of(args.layers)
    if args.tokens is not None and args.tokens < 1:
        raise SurgeryError(f"--tokens {args.tokens}: expected a positive number")

    from surgery.model import load
    from surgery.progress import track
    from surgery.statistics import collect

    model = load(args.base, device=args.device)
    layers = layers if layers is not None else list(range(model.n_layers))
    found = collect(model, layers, args.text, args.tokens)
    rows = {
        layer: moment.report()
        for layer, moment in track(found.moments.items(), "spectra", total=len(found.moments))
    }
    record = found.record
    lines = [
        f"{record['tokens']} tokens of {record['text']}, {record['width']} inputs a layer"
        + ("" if record["enough"] else ": too few, give more text"),
        "",
        f"{'layer':>5} {'condition':>10} {'effective rank':>14} {'largest':>10} {'smallest':>10}",
        *(
            f"{layer:>5} {row['condition']:>10.3g} {row['effective_rank']:>14.0f} "
            f"{row['largest']:>10.3g} {row['smallest']:>10.3g}"
            for layer, row in rows.items()
        ),
    ]
    data = {**record, "layers": {str(layer): row for layer, row in rows.items()}}
    return Outcome(data=data, text="\n".join(lines))
