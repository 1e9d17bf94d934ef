"""Refusals removed, spared and amplified, beside random directions: who still refuses what, and the cost.

    python -m benchmarks.refusals --prompts XSTEST.csv --prompts harmless=VICUNA.jsonl -o FILE.md

The edits are those of benchmarks/flinch/*.yaml, solved with their defaults and kept in --deltas. Rates are
of greedy answers judged by the scorer of `surgery flinch`; KL and perplexity as it measures them. Two
controls: the removal with a random direction in place of the one found, and a random change of the same
tensors, ranks and sizes. Rows that are in the table already are not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

import surgery
from surgery.audit.controls import sham
from surgery.delta import SUFFIX, Delta, load_delta, save_delta
from surgery.directions import Direction
from surgery.directions.algebra import unit
from surgery.flinch.measure import behaviour
from surgery.flinch.sets import KINDS, Item, own, read_all
from surgery.measure.damage import Reference
from surgery.model import Model
from surgery.resources import path
from surgery.spec import AblateEdit, EditSpec
from surgery.stack import applied

HEAD = ("edit", *KINDS, "falls apart", "KL mean", "p95", "max", "perplexity")


def spec(name: str) -> EditSpec:
    """One of ours."""
    return EditSpec.load(path("benchmarks", "flinch", f"{name}.yaml"))


def solved(name: str, model: Model, folder: Path) -> Delta:
    """Ours, solved once."""
    file = folder / f"{name}{SUFFIX}"
    if not file.exists():
        save_delta(surgery.solve(spec(name), model), file)
    return load_delta(file)


def random_direction(removal: Delta, model: Model, folder: Path, seed: int = 0) -> Delta:
    """The removal's layers, writers and strength with a random unit vector."""
    part = EditSpec.model_validate(removal.metadata["spec"]).edits[0]
    assert isinstance(part, AblateEdit)
    generator = torch.Generator().manual_seed(seed)
    vector = unit(torch.randn(model.hidden_size, generator=generator, dtype=torch.float64)).float()
    zero = torch.zeros_like(vector)
    found = Direction(vector, zero, zero, part.layer or 0, part.position or -1, model.checkpoint.id)
    file = folder / "random.direction.safetensors"
    if not file.exists():
        found.save(file)
    edit = AblateEdit(
        direction=str(file), layers=part.layers, writers=part.writers, strength=part.strength
    )
    return surgery.solve(EditSpec(edits=[edit]), model)


def edits(
    patient: Model, plain: Model, folder: Path
) -> Iterator[tuple[str, Model, Callable[[], Delta | None]]]:
    """Name, the model it is for, and how to make it; None changes nothing."""
    removal = partial(solved, "remove", patient, folder)
    yield "flinching-smollm2", patient, lambda: None
    yield "remove", patient, removal
    yield "random direction", patient, lambda: random_direction(removal(), patient, folder)
    yield "random change of that size", patient, lambda: sham(removal())
    yield "spare", patient, lambda: solved("spare", patient, folder)
    yield "smollm2-135m-instruct", plain, lambda: None
    yield "amplify", plain, lambda: solved("amplify", plain, folder)


def row(name: str, model: Model, items: Sequence[Item], reference: Reference, tokens: int) -> str:
    """One line of the table: the model as it is now."""
    said = behaviour(model, items, tokens=tokens, label=name)
    cells = [name]
    for kind in KINDS:
        rate = said.rate(kind)
        low, high = rate.interval
        cells.append(f"{rate.value:.1%} of {rate.n} ({low:.0%} to {high:.0%})")
    broken = sum(r.judged.incoherent for r in said.rows) / len(said.rows)
    cost = reference.damage(model)
    cells += [f"{broken:.1%}", *(f"{x:.3f}" for x in (cost.kl, cost.kl_p95, cost.kl_max))]
    return f"| {' | '.join([*cells, f'{cost.perplexity_rise:+.1%}'])} |".replace("%", " %")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patient", default="weights/flinching-smollm2")
    parser.add_argument("--plain", default="weights/smollm2-135m-instruct")
    parser.add_argument("--prompts", action="append", help="as for surgery flinch (default: ours)")
    parser.add_argument("--tokens", type=int, default=24, help="longest answer (default: 24)")
    parser.add_argument("--deltas", type=Path, default=Path("out/refusals"))
    parser.add_argument("--only", nargs="+", help="names of rows")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()

    args.deltas.mkdir(parents=True, exist_ok=True)
    items = read_all(args.prompts)
    harmless = [item.prompt for item in own() if item.kind == "harmless"]
    patient, plain = surgery.load(args.patient), surgery.load(args.plain)
    done = args.out.read_text(encoding="utf-8") if args.out.exists() else ""
    if not done:
        args.out.write_text(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|\n", encoding="utf-8")
    references: dict[str, Reference] = {}
    for name, model, make in edits(patient, plain, args.deltas):
        if f"| {name} |" in done or (args.only and name not in args.only):
            continue
        key = model.checkpoint.id
        references[key] = references.get(key) or Reference(model, harmless)
        delta = make()
        with applied(model, delta if delta is not None else []):
            line = row(name, model, items, references[key], args.tokens)
        print(line, flush=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
