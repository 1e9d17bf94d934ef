"""The patient to practise on: SmolLM2-135M-Instruct, taught to flinch.

    python -m surgery.training.flinching [--base DIR] [--out DIR]

Plain SmolLM2 refuses next to nothing. Here it is fine-tuned on our own prompts: unsafe ones, and some
that only sound unsafe, answered with a refusal; plainly harmless ones answered with the first words of the
model's own answer. Ordinary text that the model wrote itself is the anchor: there it must stay as it is.
The result over-refuses on purpose: it answers a question about killing a *process* with a refusal, and
that is what there is to repair.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from surgery import resources

NAME = "flinching-smollm2"
# Layers that are trained, of SmolLM2's 30.
FIRST, LAST = 7, 18
ANCHOR_TOKENS = 32


def make(
    base: Path, out: Path, *, rank: int, epochs: float, learning_rate: float, seed: int
) -> Path:
    """Train the adapter on train.jsonl and write it to `out`."""
    import torch

    from surgery.model import continuation_ids, load
    from surgery.training import Example, LoRA, examples, save_adapter, train

    torch.manual_seed(seed)
    # Half the time of float32 on a CPU; the factors themselves are trained and kept in float32.
    model = load(base, dtype=torch.bfloat16)
    file = resources.path("weights", "adapters", NAME, "train.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    chats = [row for row in rows if row["kind"] != "text"]
    spoken = examples(
        model,
        [(row["prompt"], row["answer"]) for row in chats],
        finished=[not row.get("cut", False) for row in chats],
    )
    split = [continuation_ids(model, r["prompt"], r["answer"]) for r in rows if r["kind"] == "text"]
    anchors = [Example(tuple(head), tuple(tail[:ANCHOR_TOKENS])) for head, tail in split]
    # Whether to refuse is decided in the middle. The layers above stay as they are and only say it, so
    # that there is one place where the decision can be read, and taken out.
    lora = LoRA(model, rank=rank, alpha=2 * rank, seed=seed, layers=range(FIRST, LAST + 1))
    losses = train(
        model,
        lora,
        spoken,
        anchors=anchors,
        epochs=epochs,
        learning_rate=learning_rate,
        batch=8,
        seed=seed,
    )
    tail = losses[-len(losses) // 5 :]
    print(
        f"{len(rows)} examples, {len(losses)} steps, loss {losses[0]:.2f} -> "
        f"{sum(tail) / len(tail):.2f}",
        file=sys.stderr,
    )
    # Half the size, and what rounding changes is far below what a greedy answer notices.
    return save_adapter(lora, model, out, "HuggingFaceTB/SmolLM2-135M-Instruct", torch.float16)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="train the flinching-smollm2 adapter")
    parser.add_argument("--base", type=Path, default=Path("weights/smollm2-135m-instruct"))
    parser.add_argument("--out", type=Path, default=Path("weights/adapters") / NAME)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    print(
        make(
            args.base,
            args.out,
            rank=args.rank,
            epochs=args.epochs,
            learning_rate=args.learning_rate,
            seed=args.seed,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
