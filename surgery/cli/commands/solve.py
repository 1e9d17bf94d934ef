"""`surgery solve`: a spec into a delta."""

from __future__ import annotations

import argparse
from pathlib import Path

from surgery.cli.outcome import Outcome

HELP = "solve a spec into a delta"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery solve`."""
    parser.add_argument("spec", metavar="SPEC", help="the edit, as YAML or JSON")
    parser.add_argument("--base", metavar="DIR", help="the checkpoint (default: the spec's base)")
    parser.add_argument("-o", "--out", metavar="DELTA", required=True, help="the file to write")
    parser.add_argument("--device", help="where to compute (default: CUDA, else MPS, else CPU)")


def run(args: argparse.Namespace) -> Outcome:
    """Load the model, solve, and write the delta."""
    from surgery.cli.inputs import base_of, check_new_file
    from surgery.spec import EditSpec

    spec = EditSpec.load(args.spec)
    base = base_of(args.base, spec, args.spec)
    check_new_file(args.out)

    from surgery.delta import save_delta
    from surgery.methods import solve
    from surgery.model import load
    from surgery.stack.card import describe

    model = load(base, device=args.device)
    delta = solve(spec, model)
    path = save_delta(delta, Path(args.out))
    norms = delta.norms()
    data = {
        "path": str(path),
        "id": delta.id,
        "base_id": delta.base_id,
        "stack": list(delta.stack),
        "spec_id": spec.id,
        "tensors": {
            key: {"rank": change.rank, "norm": norms[key]} for key, change in delta.tensors.items()
        },
        "diagnostics": delta.metadata.get("diagnostics", []),
        "seconds": delta.metadata.get("run", {}).get("seconds"),
    }
    many = len(delta.tensors)
    text = (
        f"{path}: {describe(delta.metadata)}\n"
        f"{many} tensor{'s' * (many != 1)} changed, delta {delta.id[:12]} "
        f"for base {delta.base_id[:12]}, {data['seconds']} s"
    )
    return Outcome(data=data, text=text)
