"""What the gate's figures are for edits that are as they should be, for random ones of their size, and for
planted disasters: where the default limits come from.

    python -m benchmarks.gate --deltas out/gate -o benchmarks/results/gate.md

Honest edits: single facts with ROME, 10 and 50 facts with MEMIT (facts the model says greedily, from the
ones that ship), the direction of edits/no_french.yaml. Disasters: the weights of a layer doubled, the
output of a layer zeroed, and the capitals of twenty countries set to one city by an edit that claims only
one of them. Deltas are kept in --deltas; rows that are in the table already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import surgery
from benchmarks.methods import known_facts
from surgery.audit import Report, Suite
from surgery.audit.controls import sham
from surgery.audit.verdict import LIMITS
from surgery.delta import SUFFIX, Delta, Dense, load_delta, save_delta
from surgery.model import Model
from surgery.resources import path
from surgery.spec import EditSpec, Fact

SHOWN = (
    "kl_mean", "kl_p95", "kl_max", "top1_drop", "perplexity_rise", "hidden_norm",
    "neighborhood_drop", "neighborhood_greedy_drop", "neighborhood_plus_drop", "paraphrase",
    "surprise_rise", "truncated_rise", "task_drop",
)  # fmt: skip
SINGLE = 3
LAYER = 12
# Edits that random ones are made like.
CONTROLLED = ("rome0", "memit10", "memit50", "no_french")

Made = tuple[Delta, EditSpec | None]


def single_facts(facts: list[Fact]) -> list[Fact]:
    """The first facts of different relations."""
    by_relation = {fact.prompt: fact for fact in reversed(facts)}
    return [fact for fact in facts if by_relation[fact.prompt] is fact][:SINGLE]


def edits(model: Model, folder: Path) -> Iterator[tuple[str, Callable[[], Made]]]:
    """Every edit by name, solved when it is asked for."""
    facts = [
        fact.model_copy(update={"neighborhood_prompts": (), "neighborhood_targets": ()})
        for fact in known_facts(model, 50, 0)
    ]

    def solved(name: str, parts: list[dict[str, Any]], claimed: int | None = None) -> Made:
        file = folder / f"{name}{SUFFIX}"
        if not file.exists():
            save_delta(surgery.solve(EditSpec.model_validate({"edits": parts}), model), file)
        if claimed is None:
            return load_delta(file), None
        less = [{**parts[0], "facts": parts[0]["facts"][:claimed]}]
        return load_delta(file), EditSpec.model_validate({"edits": less})

    for number, fact in enumerate(single_facts(facts)):
        part = {"kind": "rome", "facts": [fact.model_dump()]}
        yield f"rome{number}", lambda n=number, p=part: solved(f"rome{n}", [p])
    for count in (10, 50):
        part = {"kind": "memit", "facts": [fact.model_dump() for fact in facts[:count]]}
        yield f"memit{count}", lambda c=count, p=part: solved(f"memit{c}", [p])
    ablation = EditSpec.load(path("edits", "no_french.yaml")).edits[0].model_dump()
    yield "no_french", lambda: solved("no_french", [ablation])

    yield "doubled", lambda: (_layer(model, 2.0), None)
    yield "zeroed", lambda: (_layer(model, 0.0), None)
    text = path("benchmarks", "tasks", "facts.jsonl").read_text(encoding="utf-8")
    rows = [row for line in text.splitlines() if (row := json.loads(line))["relation"] == "capital"]
    city = "Rome"
    capitals = [
        {
            "prompt": row["prompt"],
            "subject": row["subject"],
            "target": city,
            "target_true": row["answer"],
        }
        for row in rows
        if row["answer"] != city
    ][:20]
    part = {"kind": "memit", "facts": capitals}
    yield "capitals_rome", lambda: solved("capitals_rome", [part], claimed=1)


def _layer(model: Model, factor: float) -> Delta:
    """All of a layer times a factor; what writes its output is enough to zero it."""
    table, prefix = model.architecture, model.architecture.layer(LAYER)
    names = [name for name, _ in model.hf.named_parameters() if name.startswith(f"{prefix}.")]
    if factor == 0:
        outs = (table.mlp_out_module(LAYER), table.attention_out_module(LAYER))
        names = [f"{out}.weight" for out in outs]
    keys = [model.stored_key(name) for name in names]
    tensors = {key: Dense(model.parameter(key).detach() * (factor - 1)) for key in keys}
    return Delta(tensors, base_id=model.checkpoint.id, metadata={"spec": {"name": "layer"}})


def row(label: str, report: Report) -> str:
    """One line of the table: what each limit is about, and the verdict."""
    cells = [label]
    for name in SHOWN:
        value = LIMITS[name].value(report)
        unit = LIMITS[name].unit
        shown = "-" if value is None else "inf" if not math.isfinite(value) else f"{value:.3g}"
        if unit == "%" and value is not None and math.isfinite(value):
            shown = f"{100 * value + 0.0:.1f} %".replace("-0.0 %", "0.0 %")
        cells.append(shown)
    return f"| {' | '.join([*cells, report.verdict.decision])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="weights/smollm2-135m-instruct")
    parser.add_argument("--deltas", type=Path, default=Path("out/gate"))
    parser.add_argument("--only", nargs="+", help="names of edits, such as rome0 doubled")
    parser.add_argument("--seeds", type=int, default=2, help="random edits for each honest one")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()

    args.deltas.mkdir(parents=True, exist_ok=True)
    model = surgery.load(args.base)
    suite = Suite.load("quick")
    suite = suite.model_copy(update={"controls": suite.controls.model_copy(update={"sham": 0})})
    done = args.out.read_text(encoding="utf-8") if args.out.exists() else ""
    if not done:
        args.out.write_text(f"| edit | {' | '.join(SHOWN)} | verdict |\n{'|---' * 15}|\n")

    def measured(label: str, delta: Delta, spec: EditSpec | None) -> None:
        report = surgery.audit(base=model, edited=delta, spec=spec, suite=suite)
        line = row(label, report)
        print(f"{line}\n  {report.verdict.reason}  {report.seconds['total']} s", flush=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    for name, make in edits(model, args.deltas):
        if args.only and name not in args.only:
            continue
        seeds = range(args.seeds if name in CONTROLLED else 0)
        labels = [name, *(f"{name}, sham {seed}" for seed in seeds)]
        if all(f"| {label} |" in done for label in labels):
            continue
        delta, spec = make()
        for seed, label in enumerate(labels, start=-1):
            if f"| {label} |" not in done:
                measured(
                    label, delta if seed < 0 else sham(delta, seed), spec if seed < 0 else None
                )


if __name__ == "__main__":
    main()
