"""How fast is the target solver? Ours against the plain reference of the tests, on the same facts.

    python -m benchmarks.speed.targets --base weights/smollm2-135m-instruct --facts 32

Both run in one process, on the same rows, with the same settings; the plain one re-runs the whole model
over the whole texts at every step. Losses are printed next to the times: a faster answer that is another
answer would be no gain.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from surgery.facts.rows import essence_row, rewriting_rows, sample_prefixes
from surgery.facts.target import TargetSettings, solve_targets
from surgery.methods.rome import default_layer
from surgery.model import load
from surgery.resources import path
from surgery.spec import Fact
from tests.plain_target import plain_targets


def facts(count: int) -> list[Fact]:
    """Facts from the ones that ship, each with the next one's answer of its relation as target."""
    records = [
        json.loads(line)
        for line in path("benchmarks", "tasks", "facts.jsonl").read_text().splitlines()
    ]
    made = []
    for one, other in zip(records, records[1:], strict=False):
        if one["relation"] == other["relation"] and one["answer"] != other["answer"]:
            made.append(Fact(prompt=one["prompt"], subject=one["subject"], target=other["answer"]))
    step = max(1, len(made) // count)
    return made[::step][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="weights/smollm2-135m-instruct")
    parser.add_argument("--facts", type=int, default=32)
    parser.add_argument("--plain", type=int, default=4, help="facts the plain solver is timed on")
    parser.add_argument("--contexts", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--out", type=Path, help="write the table here too")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    model = load(args.base)
    settings = TargetSettings(layer=default_layer(model), site="value")
    chosen = facts(args.facts)
    prefixes = sample_prefixes(model, args.contexts, seed=0)
    rewriting = [rewriting_rows(model, fact, prefixes) for fact in chosen]
    essence = [essence_row(model, fact) for fact in chosen]
    solve_targets(model, rewriting[:1], essence[:1], settings)  # warm up

    def timed(solver, count: int):  # noqa: ANN001, ANN202
        begin = time.perf_counter()
        found = solver(model, rewriting[:count], essence[:count], settings)
        return (time.perf_counter() - begin) / count, found

    rows = []
    slow, reference = timed(plain_targets, args.plain)
    alone = [solve_and_time(model, rewriting[i], essence[i], settings) for i in range(args.plain)]
    each = sum(seconds for seconds, _ in alone) / args.plain
    together, batch = timed(solve_targets, args.facts)
    difference = (batch.loss[: args.plain] - reference.loss).abs().max()
    rows.append(("plain reference, one by one", slow, 1.0, float(reference.loss.mean())))
    rows.append(
        (
            "ours, one by one",
            each,
            slow / each,
            sum(float(t.loss[0]) for _, t in alone) / args.plain,
        )
    )
    rows.append(
        (f"ours, {args.facts} facts together", together, slow / together, float(batch.loss.mean()))
    )
    lines = [
        f"layer {settings.layer}, {args.contexts + 1} contexts, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; base {model.checkpoint.id[:12]}",
        "",
        "| solver | seconds a fact | times faster | mean final loss |",
        "|---|---|---|---|",
        *(f"| {name} | {s:.2f} | {x:.1f} | {loss:.4f} |" for name, s, x, loss in rows),
        "",
        f"Largest difference of a final loss, ours to the reference: {difference:.1e} "
        f"({args.plain} facts); mean steps {batch.steps.float().mean():.1f}.",
    ]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def solve_and_time(model, rewriting, essence, settings):  # noqa: ANN001, ANN201
    begin = time.perf_counter()
    found = solve_targets(model, [rewriting], [essence], settings)
    return time.perf_counter() - begin, found


if __name__ == "__main__":
    main()
