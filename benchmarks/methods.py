"""Every fact method at several sizes, on one model: success, neighbours, damage, seconds, memory.

    python -m benchmarks.methods --base weights/smollm2-135m-instruct --methods rome memit --counts 1 10 50

Facts are taken from the ones that ship with the audit and the model already knows (it says them greedily),
each asked to become another answer of its relation; --facts takes a list of your own with
target_true, paraphrase_prompts and neighbourhood fields. Neighbours are facts of the same relation about
subjects that are not edited. `rome` edits one fact at a time and is averaged over `--single` of them; the
others solve all at once. Rows are appended to --out as they are measured.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from pathlib import Path

import torch

import surgery
from benchmarks.table import Table
from surgery.audit.general import Passage, divergence, passages, perplexity, text_states
from surgery.audit.head import Head
from surgery.audit.score import answer_logprobs
from surgery.model import Model
from surgery.resources import path
from surgery.spec import EditSpec, Fact, read_facts
from surgery.stack import applied

ONE_BY_ONE = ("rome",)
NEIGHBOURS = 4
COLUMNS = (
    "method", "facts", "new preferred", "greedy", "paraphrases", "neighbours", "KL", "perplexity",
    "s/fact", "GiB",
)  # fmt: skip


def known_facts(model: Model, count: int, seed: int) -> list[Fact]:
    """Facts the model says greedily, each with another answer of its relation as the new one."""
    text = path("benchmarks", "tasks", "facts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line]
    scores = answer_logprobs(
        model, [(row["prompt"].replace("{}", row["subject"]), row["answer"]) for row in rows]
    )
    known = [row for row, score in zip(rows, scores, strict=True) if score.greedy]
    dice = random.Random(seed)
    dice.shuffle(known)
    made = []
    for row in known:
        same = [r for r in known if r["relation"] == row["relation"]]
        answers = sorted({r["answer"] for r in same} - {row["answer"]})
        others = [r for r in same if r["subject"] != row["subject"]]
        if not answers or len(others) < 2:
            continue
        near = dice.sample(others, min(NEIGHBOURS, len(others)))
        made.append(
            Fact(
                prompt=row["prompt"],
                subject=row["subject"],
                target=dice.choice(answers),
                target_true=row["answer"],
                paraphrase_prompts=tuple(row["paraphrases"]),
                neighborhood_prompts=tuple(r["prompt"].replace("{}", r["subject"]) for r in near),
                neighborhood_targets=tuple(r["answer"] for r in near),
            )
        )
    return made[:count]


def texts(model: Model) -> list[Passage]:
    files = sorted(path("benchmarks", "text").glob("*.txt"))
    blocks = [block for file in files for block in file.read_text().split("\n\n")[:3]]
    return passages(model, "all", [block.strip() for block in blocks], tokens=64)


def preferred(model: Model, asked: list[tuple[str, str, str]]) -> tuple[list[bool], list[bool]]:
    """For (prompt, answer, other): is the answer preferred, and is it greedy?"""
    scores = answer_logprobs(model, [(p, a) for p, a, _ in asked] + [(p, o) for p, _, o in asked])
    half = len(asked)
    better = [
        a.mean_logprob > o.mean_logprob for a, o in zip(scores[:half], scores[half:], strict=True)
    ]
    return better, [score.greedy for score in scores[:half]]


def asked(facts: list[Fact]) -> list[tuple[str, str, str]]:
    """The edited prompts: new answer against the old one."""
    return [(f.text, f.target, f.target_true or "") for f in facts]


def near(facts: list[Fact], edited: set[str]) -> list[tuple[str, str, str]]:
    """Neighbours: their own answer against the new one of the fact; none about an edited subject."""
    return [
        (p, t, f.target)
        for f in facts
        for p, t in zip(f.neighborhood_prompts, f.neighborhood_targets, strict=True)
        if t != f.target and not any(subject in p for subject in edited)
    ]


def measure(model: Model, method: str, facts: list[Fact], edited: set[str], before) -> dict:  # noqa: ANN001
    """Solve, put on, and measure one edit. `edited`: subjects that are not neighbours."""
    begin = time.perf_counter()
    spec = EditSpec.model_validate(
        {"edits": [{"kind": method, "facts": [fact.model_dump() for fact in facts]}]}
    )
    delta = surgery.solve(spec, model)
    seconds = time.perf_counter() - begin
    para = [
        (f.filled(p), f.target, f.target_true or "") for f in facts for p in f.paraphrase_prompts
    ]
    passages_, base, head = before
    with applied(model, delta):
        success, greedy = preferred(model, asked(facts))
        paraphrases, _ = preferred(model, para)
        neighbours, _ = preferred(model, near(facts, edited))
        after = text_states(model, passages_)
        kl = divergence(base, head, after, Head.of(model)).kl
    return {
        "new preferred": success,
        "greedy": greedy,
        "paraphrases": paraphrases,
        "neighbours": neighbours,
        "KL": [float(kl.mean())],
        "perplexity": [perplexity(after.nll) / perplexity(base.nll) - 1],
        "s/fact": [seconds / len(facts)],
    }


def cells(method: str, count: int, found: list[dict]) -> list[str]:
    def mean(name: str) -> float:
        values = [float(v) for one in found for v in one[name]]
        return sum(values) / max(1, len(values))

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        method,
        f"{count}" if method not in ONE_BY_ONE else f"1 (mean of {len(found)})",
        *(f"{mean(name):.1%}" for name in COLUMNS[2:6]),
        f"{mean('KL'):.4f}",
        f"{mean('perplexity'):+.2%}",
        f"{mean('s/fact'):.1f}",
        f"{peak:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="weights/smollm2-135m-instruct")
    parser.add_argument("--facts", help="a list of facts, instead of the ones that ship")
    parser.add_argument("--methods", nargs="+", default=["rome", "emmet", "memit", "alphaedit"])
    parser.add_argument("--counts", nargs="+", type=int, default=[10, 50])
    parser.add_argument("--single", type=int, default=20, help="facts for one-by-one methods")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model = surgery.load(args.base)
    most = max([args.single, *args.counts])
    facts = read_facts(args.facts)[:most] if args.facts else known_facts(model, most, args.seed)
    sample = texts(model)
    before = (sample, text_states(model, sample), Head.of(model))

    table = Table(
        f"Base `{model.checkpoint.id[:12]}`, {len(facts)} facts, seed {args.seed}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}.",
        COLUMNS,
        args.out,
    )
    for method in args.methods:
        if method in ONE_BY_ONE:
            chosen = facts[: args.single]
            found = [measure(model, method, [f], {f.subject}, before) for f in chosen]
            table.row(cells(method, 1, found))
            continue
        for count in args.counts:
            batch = facts[:count]
            edited = {fact.subject for fact in batch}
            table.row(cells(method, len(batch), [measure(model, method, batch, edited, before)]))


if __name__ == "__main__":
    main()
