"""How fast is the target solver? Ours against the plain reference of the tests, on the same facts.

    python -m benchmarks.speed.targets --base weights/smollm2-135m-instruct --facts 32

Targets as memit and alphaedit ask for them. All run in one process, on the same rows; the plain one re-runs
the whole model over the whole texts at every step. Its first line is what the papers' code does: Adam, until
the loss is below the limit or for 25 steps. Losses are printed next to the times: a faster answer that is a
worse one would be no gain.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import fields, replace
from pathlib import Path

import torch

from surgery.facts.rows import essence_row, rewriting_rows, sample_prefixes
from surgery.facts.target import Targets, TargetSettings, solve_targets
from surgery.methods.spread import CLAMP, default_layers
from surgery.model import load
from surgery.resources import path
from surgery.spec import Fact
from surgery.statistics import metric, sensitivity
from tests.plain_target import plain_targets

# Adam's step, as a share of |v_0| / sqrt(d_model): larger ones end at the clamp with a higher loss.
ADAM = 0.2


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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="weights/smollm2-135m-instruct")
    parser.add_argument("--facts", type=int, default=32)
    parser.add_argument("--plain", type=int, default=12, help="facts the plain solver is timed on")
    parser.add_argument("--contexts", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--out", type=Path, help="write the table here too")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    model = load(args.base)
    settings = TargetSettings(layer=default_layers(model)[-1], site="stream", clamp=CLAMP)
    published = replace(settings, learning_rate=ADAM)
    chosen = facts(args.facts)
    prefixes = sample_prefixes(model, args.contexts, seed=0)
    rewriting = [rewriting_rows(model, fact, prefixes) for fact in chosen]
    essence = [essence_row(model, fact) for fact in chosen]
    short = metric(sensitivity(model, settings.layer))  # once a model and layer, then kept
    solve_targets(model, rewriting[:1], essence[:1], settings, short)  # warm up

    count, spread = args.plain, range(0, len(chosen), max(1, len(chosen) // args.plain))
    sample = list(spread)[:count]

    def one_by_one(solver, with_settings: TargetSettings) -> tuple[float, Targets]:  # noqa: ANN001
        begin = time.perf_counter()
        found = [solver(model, [rewriting[i]], [essence[i]], with_settings, short) for i in sample]
        seconds = (time.perf_counter() - begin) / len(sample)
        return seconds, Targets(*(torch.cat(c) for c in zip(*map(columns, found), strict=True)))

    rows = [
        ("plain, Adam as published, one by one", *one_by_one(plain_targets, published)),
        ("plain, our steps, one by one", *one_by_one(plain_targets, settings)),
        ("ours, Adam as published, one by one", *one_by_one(solve_targets, published)),
        ("ours, one by one", *one_by_one(solve_targets, settings)),
    ]
    begin = time.perf_counter()
    together = solve_targets(model, rewriting, essence, settings, short)
    seconds = (time.perf_counter() - begin) / len(chosen)
    rows.append((f"ours, {len(chosen)} facts together", seconds, together))

    slow = rows[0][1]
    apart = (rows[3][2].loss - rows[1][2].loss).abs().max()
    among = (together.loss[sample] - rows[3][2].loss).abs().max()
    lines = [
        f"layer {settings.layer}, {args.contexts + 1} contexts, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; base {model.checkpoint.id[:12]}",
        "",
        f"| solver | facts | seconds a fact | times faster | steps | mean final loss | largest "
        f"| done (below {settings.stop_loss}) | length of d over v_0 |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row(name, s, slow / s, found, settings.stop_loss) for name, s, found in rows),
        "",
        f"Largest difference of a final loss with our steps, ours to the plain reference: {apart:.1e}; "
        f"in the batch to alone: {among:.1e} ({len(sample)} facts).",
    ]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def columns(found: Targets) -> list[torch.Tensor]:
    return [getattr(found, field.name) for field in fields(Targets)]


def row(name: str, seconds: float, times: float, found: Targets, stop: float) -> str:
    length = (found.change.norm(dim=-1) / found.start.norm(dim=-1)).mean()
    return (
        f"| {name} | {len(found.loss)} | {seconds:.2f} | {times:.1f} | {found.steps.float().mean():.1f} "
        f"| {found.loss.mean():.3f} | {found.loss.max():.3f} | {int((found.loss < stop).sum())} "
        f"| {length:.2f} |"
    )


if __name__ == "__main__":
    main()
