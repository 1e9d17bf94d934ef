"""`surgery trace`: where a model keeps what it says about a subject."""

from __future__ import annotations

import argparse

from surgery.cli.outcome import Outcome

HELP = "find the layers that carry a fact: a causal trace, with a picture"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery trace`."""
    parser.add_argument("--base", metavar="DIR", required=True, help="the checkpoint folder")
    parser.add_argument(
        "--prompt",
        metavar="P",
        required=True,
        help="a prompt that names the subject, or has {} for it",
    )
    parser.add_argument("--subject", metavar="S", required=True, help="whose embeddings are noised")
    parser.add_argument(
        "--answer", metavar="A", help="the answer to follow (default: what the model says next)"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="picture to write: .png, .svg or .pdf"
    )
    parser.add_argument("--html", metavar="FILE", help="page to write, complete in itself")
    parser.add_argument(
        "--noise",
        type=float,
        default=3.0,
        help="noise, in standard deviations of the embeddings (3)",
    )
    parser.add_argument("--samples", type=int, default=8, help="noise samples (8)")
    parser.add_argument("--window", type=int, help="layers of MLP or attention restored together")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (0)")
    parser.add_argument("--device", help="where to compute, such as cpu or cuda")


def run(args: argparse.Namespace) -> Outcome:
    """Trace, draw, and say where the fact is."""
    from pathlib import Path

    from surgery.checkpoint import atomic_file
    from surgery.cli.inputs import check_new_file
    from surgery.errors import SurgeryError
    from surgery.model import load
    from surgery.trace import causal_trace, heat_map_text, html, save_picture
    from surgery.trace.picture import SUFFIXES

    # Said before the minutes are spent, not after.
    if args.output and Path(args.output).suffix.lower() not in SUFFIXES:
        raise SurgeryError(f"{args.output}: a picture ends in {', '.join(SUFFIXES)}")
    for file in (args.output, args.html):
        if file:
            check_new_file(file)
    trace = causal_trace(
        load(args.base, device=args.device),
        args.prompt,
        args.subject,
        noise=args.noise,
        samples=args.samples,
        answer=args.answer,
        window=args.window,
        seed=args.seed,
    )
    data, lines = trace.as_dict(), [heat_map_text(trace)]
    if args.output:
        data["picture"] = str(save_picture(trace, args.output))
        lines += ["", f"picture: {args.output}"]
    if args.html:
        with atomic_file(args.html) as temporary:
            temporary.write_text(html(trace), encoding="utf-8")
        data["html"] = args.html
        lines.append(f"page: {args.html}")
    return Outcome(data=data, text="\n".join(lines))
