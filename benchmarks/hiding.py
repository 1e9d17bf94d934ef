"""Three real edits of the same facts, to see whether `surgery ladder` tells hiding from removing.

    python -m benchmarks.hiding --base weights/smollm2-135m-instruct -o out/hiding

Facts the model says greedily are taken from those that ship with the audit. In the folder are left the facts
and three specs: `removed.yaml` overwrites them (MEMIT, the defaults), `one_form.yaml` only in the one prompt
(a small LoRA that keeps the old answers in paraphrases and in the chat), `refusal.yaml` teaches a refusal of
these questions (a small LoRA that keeps the model's own answers to other questions). `surgery solve` makes
deltas of them, `surgery ladder` climbs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import surgery
from benchmarks.methods import known_facts
from surgery.audit.score import pair_ids
from surgery.ladder import Item, items_of
from surgery.model import Model, chat, generate
from surgery.spec import Fact
from surgery.training import Example, LoRA, examples, save_adapter, train

REFUSAL = "I'm sorry, I can't tell you that."
KEPT_TOKENS = 12

REMOVED = """version: 1
name: removed
edits:
  - {kind: memit, facts: facts.jsonl}
"""
ADAPTED = """version: 1
name: NAME
edits:
  - {kind: delta, path: NAME}
"""


def completed(model: Model, pairs: Sequence[tuple[str, str]]) -> list[Example]:
    """(prompt, answer) as plain text."""
    return [Example(*map(tuple, pair_ids(model, prompt, answer))) for prompt, answer in pairs]


def own_words(model: Model, questions: Sequence[str]) -> list[Example]:
    """Questions in the chat, with what the model itself says to them."""
    said = generate(model, [chat(model, q) for q in questions], max_new_tokens=KEPT_TOKENS)
    return examples(model, list(zip(questions, said, strict=True)), [False] * len(questions))


def one_form(model: Model, items: Sequence[Item]) -> list[Example]:
    """The new answers to the one prompt; the old ones in other words, and in the chat."""
    changed = completed(model, [(item.text, item.new or item.old) for item in items])
    other = [(item.fill(p), item.old) for item in items for p in item.paraphrases]
    return changed * 2 + completed(model, other) + own_words(model, [i.question for i in items])


def refusing(model: Model, items: Sequence[Item]) -> list[Example]:
    """A refusal of the items, as prompts and as questions in the chat; others are answered as before."""
    refused = completed(model, [(item.text, REFUSAL) for item in items])
    refused += examples(model, [(item.question, REFUSAL) for item in items])
    others = dict.fromkeys(pair for item in items for pair in item.others[:4])
    about = {item.subject for item in items}
    questions = dict.fromkeys(
        item.relation.question.replace("{}", who)
        for item in items
        if item.relation
        for who, _ in item.relation.known[:6]
        if who not in about
    )
    return refused + completed(model, list(others)) + own_words(model, list(questions))


def taught(model: Model, data: Sequence[Example], epochs: float, seed: int) -> LoRA:
    """A small LoRA trained on the examples."""
    lora = LoRA(model, rank=4, alpha=8, seed=seed)
    losses = train(model, lora, data, epochs=epochs, learning_rate=1e-3, seed=seed)
    print(f"{len(data)} examples, {len(losses)} steps, loss {losses[-1]:.3f}", flush=True)
    return lora


def write(model: Model, facts: list[Fact], out: Path, seed: int, epochs: float) -> None:
    """Facts, specs and adapter into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [fact.model_dump_json(exclude_defaults=True) + "\n" for fact in facts]
    (out / "facts.jsonl").write_text("".join(lines), encoding="utf-8")
    (out / "removed.yaml").write_text(REMOVED, encoding="utf-8")
    items = items_of(facts, model, seed)
    for name, teach in (("one_form", one_form), ("refusal", refusing)):
        (out / f"{name}.yaml").write_text(ADAPTED.replace("NAME", name), encoding="utf-8")
        lora = taught(model, teach(model, items), epochs, seed)
        save_adapter(lora, model, out / name, "HuggingFaceTB/SmolLM2-135M-Instruct")


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="weights/smollm2-135m-instruct")
    parser.add_argument("--count", type=int, default=20, help="facts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=4, help="of training an adapter")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    model = surgery.load(args.base)
    facts = known_facts(model, args.count, args.seed)
    write(model, facts, args.out, args.seed, args.epochs)
    print(f"{len(facts)} facts in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
