"""`surgery direction`: find a direction between two prompt sets, and say how it was chosen."""

from __future__ import annotations

import argparse
from pathlib import Path

from surgery.cli.outcome import Outcome

HELP = "find and save a direction; say how it was chosen"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery direction`."""
    parser.add_argument("--positive", metavar="F", required=True, help="prompts that show it")
    parser.add_argument("--negative", metavar="F", required=True, help="prompts that do not")
    parser.add_argument("--base", metavar="DIR", required=True, help="the checkpoint")
    parser.add_argument("-o", "--out", metavar="FILE", required=True, help="the file to write")
    parser.add_argument("--layer", type=int, help="read it here instead of choosing")
    parser.add_argument("--position", type=int, default=-1, help="with --layer (default: -1)")
    parser.add_argument(
        "--positions", type=int, default=4, help="how many last tokens to consider (default: 4)"
    )
    parser.add_argument(
        "--tries", type=int, default=10, help="how many candidates to try out (default: 10)"
    )
    parser.add_argument("--plot", metavar="FILE", help="picture of the choice, .svg or .png")
    parser.add_argument(
        "--no-chat", action="store_true", help="do not put the chat template around"
    )
    parser.add_argument("--device", help="where to compute (default: CUDA, else MPS, else CPU)")


def run(args: argparse.Namespace) -> Outcome:
    """Find, save, and show the candidates."""
    from surgery.cli.inputs import check_new_file
    from surgery.errors import SurgeryError
    from surgery.spec import read_prompts

    positive, negative = read_prompts(args.positive), read_prompts(args.negative)
    check_new_file(args.out)
    if args.plot:
        check_new_file(args.plot)
        if args.layer is not None:
            raise SurgeryError("--plot shows the choice of a layer: leave out --layer")
    if args.positions < 1 or args.tries < 1 or args.position >= 0:
        raise SurgeryError("--positions and --tries are at least 1, --position is negative")

    from surgery.directions import difference_of_means
    from surgery.model import load

    model = load(args.base, device=args.device)
    use_chat = False if args.no_chat else None
    if args.layer is not None:
        found = difference_of_means(
            model, positive, negative, args.layer, args.position, use_chat=use_chat
        )
        path = found.save(args.out)
        data = {"path": str(path), "layer": found.layer, "position": found.position}
        return Outcome(data, f"{path}: layer {found.layer}, token {found.position}, as asked")

    from surgery.directions.picture import draw, table
    from surgery.directions.select import select

    selection = select(
        model, positive, negative, positions=args.positions, tries=args.tries, use_chat=use_chat
    )
    path = selection.direction.save(args.out)
    data = {"path": str(path), **selection.data()}
    if args.plot:
        data["plot"] = str(draw(selection, Path(args.plot)))
    opening = selection.opening
    words = ", ".join(repr(word) for word in opening["words"])
    layers = selection.direction.layers or [0]
    lines = [
        f"measured by how answers to positive prompts begin: {words}",
        table(selection),
        f"{path}: layer {selection.direction.layer}, token {selection.direction.position}, to be taken "
        f"out of layers {layers[0]} to {layers[-1]}",
    ]
    if opening["weak"]:
        lines.insert(
            1, "note: the first token hardly tells these sets apart; trust the separation more"
        )
    if opening["prompts_left_out"]:
        lines.insert(
            1,
            f"{opening['prompts_left_out']} prompts left out: on them the model does not do what the "
            "others of their set do",
        )
    if opening["all_dropped"]:
        lines.append(
            "note: there is something against every candidate; this one is the best of them"
        )
    return Outcome(data, "\n".join(lines))
