"""Editing over time: batches of facts on top of each other, all of them asked again after each.

    python -m benchmarks.batches --base weights/smollm2-135m-instruct --methods alphaedit memit --batches 5

The facts are those of `benchmarks.methods`. Every batch is solved on the model with the earlier ones in
place, and with their keys in the solve (`accumulate: true`). A row says how many facts of each batch are
still preferred, the neighbours of all, and the damage so far.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import surgery
from benchmarks.methods import asked, known_facts, near, preferred, texts
from benchmarks.table import Table
from surgery.audit.general import divergence, perplexity, text_states
from surgery.audit.head import Head
from surgery.spec import EditSpec, read_facts
from surgery.stack import applied

COLUMNS = (
    "method", "batches", "still preferred, by batch", "greedy, all", "neighbours", "KL", "perplexity",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="weights/smollm2-135m-instruct")
    parser.add_argument("--facts", help="a list of facts, instead of the ones that ship")
    parser.add_argument("--methods", nargs="+", default=["alphaedit", "memit"])
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--size", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the rows here")
    args = parser.parse_args()

    model = surgery.load(args.base)
    count = args.batches * args.size
    facts = read_facts(args.facts)[:count] if args.facts else known_facts(model, count, args.seed)
    batches = [facts[i : i + args.size] for i in range(0, len(facts), args.size)]
    sample = texts(model)
    base, head = text_states(model, sample), Head.of(model)

    def share(found: list[bool]) -> str:
        return f"{sum(found) / len(found):.0%}"

    table = Table(
        f"Base `{model.checkpoint.id[:12]}`, {len(batches)} batches of {args.size}, seed {args.seed}.",
        COLUMNS,
        args.out,
    )
    for method in args.methods:
        stack: list[surgery.Delta] = []
        for number, batch in enumerate(batches, start=1):
            part = {"kind": method, "facts": [f.model_dump() for f in batch], "accumulate": True}
            spec = EditSpec.model_validate({"edits": [part]})
            with applied(model, stack):
                stack.append(surgery.solve(spec, model))
            so_far = [fact for done in batches[:number] for fact in done]
            with applied(model, stack):
                kept = [preferred(model, asked(done))[0] for done in batches[:number]]
                greedy = preferred(model, asked(so_far))[1]
                beside = preferred(model, near(so_far, {fact.subject for fact in so_far}))[0]
                after = text_states(model, sample)
                kl = divergence(base, head, after, Head.of(model)).kl.mean()
            cells = [
                method,
                f"{number}",
                ", ".join(share(k) for k in kept),
                share(greedy),
                share(beside),
                f"{float(kl):.4f}",
                f"{perplexity(after.nll) / perplexity(base.nll) - 1:+.2%}",
            ]
            table.row(cells)


if __name__ == "__main__":
    main()
