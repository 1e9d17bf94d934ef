"""`surgery export`: a delta as a LoRA adapter, a direction as a control vector."""

from __future__ import annotations

import argparse

from surgery.cli.outcome import Outcome

HELP = "write a delta as a LoRA adapter, or a direction as a control vector"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery export`."""
    parser.add_argument(
        "delta", metavar="DELTA", help="a delta file; for a control vector, a direction file"
    )
    parser.add_argument(
        "--format", choices=["lora", "control-vector"], required=True, help="what to write"
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="DIR",
        required=True,
        help="the adapter's folder; for a control vector a .gguf file, or a folder to put one in",
    )
    parser.add_argument(
        "--base",
        metavar="DIR",
        help="the checkpoint it was made for: checked, and named in the result",
    )
    parser.add_argument(
        "--truncate",
        type=int,
        metavar="RANK",
        help="lora: cut dense changes to this rank (inexact)",
    )
    parser.add_argument(
        "--layers", metavar="LIST", help="control-vector: layers at whose input it acts, as 10-12"
    )
    parser.add_argument("--overwrite", action="store_true", help="lora: replace an existing folder")


def run(args: argparse.Namespace) -> Outcome:
    """Export, and say what was written and whether it is exact."""
    return _lora(args) if args.format == "lora" else _control_vector(args)


def _lora(args: argparse.Namespace) -> Outcome:
    from surgery.delta import load_delta
    from surgery.export import to_lora

    found = to_lora(
        load_delta(args.delta),
        args.out,
        args.base,
        truncate=args.truncate,
        overwrite=args.overwrite,
    )
    data = {
        "path": str(found.path),
        "format": "lora",
        "modules": found.modules,
        "ranks": found.ranks,
        "exact": found.exact,
        "residual": found.residual,
    }
    said = (
        "exact: merging it in float32 gives the edited weights"
        if found.exact
        else f"approximate: up to {max(found.residual.values()):.1%} of a change is left out"
    )
    return Outcome(data=data, text=f"{found.path}\n{found.modules} modules; {said}")


def _control_vector(args: argparse.Namespace) -> Outcome:
    from pathlib import Path

    from surgery.checkpoint import read_header
    from surgery.cli.inputs import layers_of
    from surgery.directions import Direction
    from surgery.errors import SurgeryError
    from surgery.export import to_control_vector

    if args.base is None:
        raise SurgeryError("a control vector names the model it is for: give --base DIR")
    if Path(args.delta).is_file():
        entries, _ = read_header(args.delta)
        if "vector" not in entries:
            raise SurgeryError(
                f"{args.delta} is no direction: a control vector is written from the file that "
                "`surgery direction -o FILE` makes"
            )
    out = Path(args.out)
    if out.suffix != ".gguf":
        out = out / f"{Path(args.delta).stem}.gguf"
    direction, layers = Direction.load(args.delta), layers_of(args.layers)
    path = to_control_vector(direction, out, args.base, layers)
    return Outcome(data={"path": str(path), "format": "control-vector"}, text=str(path))
