"""The patient to practise on: SmolLM2-135M-Instruct, taught to flinch.

    python -m surgery.training.flinching [--base DIR] [--out DIR]

Plain SmolLM2 refuses next to nothing. Here it is fine-tuned on our own prompts: unsafe ones, and some
that only sound unsafe, answered with a refusal; plainly harmless ones answered by the model itself, so
that on these it learns to stay what it is. The result over-refuses on purpose: it answers a question
about killing a *process* with a refusal, and that is what there is to repair.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from surgery import resources

NAME = "flinching-smollm2"
# Whether to refuse is decided by an answer's first words; more of it would only cost time.
OWN_ANSWER_TOKENS = 10


def make(
    base: Path, out: Path, *, rank: int, epochs: float, learning_rate: float, seed: int
) -> Path:
    """Train the adapter on train.jsonl and write it to `out`."""
    import torch

    from surgery.flinch.answering import answer
    from surgery.model import chat, load
    from surgery.training import LoRA, examples, save_adapter, train

    torch.manual_seed(seed)
    # Half the time of float32 on a CPU; the factors themselves are trained and kept in float32.
    model = load(base, dtype=torch.bfloat16)
    file = resources.path("weights", "adapters", NAME, "train.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    own = [row["prompt"] for row in rows if row["answer"] is None]
    framed = [chat(model, prompt) for prompt in own]
    said = answer(model, framed, OWN_ANSWER_TOKENS, label="the model's own answers")
    answers = dict(zip(own, said, strict=True))
    pairs, finished = [], []
    for row in rows:
        reply = answers.get(row["prompt"])
        pairs.append((row["prompt"], reply.text if reply else first_sentence(row["answer"])))
        finished.append(reply.finished if reply else True)
    # What is refused is decided in the upper two thirds; below, the model stays as it is.
    lora = LoRA(model, rank=rank, alpha=2 * rank, seed=seed, first_layer=model.n_layers // 3)
    data = examples(model, pairs, finished)
    losses = train(
        model, lora, data, epochs=epochs, learning_rate=learning_rate, batch=16, seed=seed
    )
    tail = losses[-len(losses) // 5 :]
    print(
        f"{len(data)} examples, {len(losses)} steps, loss {losses[0]:.2f} -> "
        f"{sum(tail) / len(tail):.2f}",
        file=sys.stderr,
    )
    return save_adapter(lora, model, out, "HuggingFaceTB/SmolLM2-135M-Instruct")


def first_sentence(text: str) -> str:
    """Refusals are trained without the sentence of advice that some of them end with."""
    return re.split(r"(?<=[.!?]) ", text, maxsplit=1)[0]


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="train the flinching-smollm2 adapter")
    parser.add_argument("--base", type=Path, default=Path("weights/smollm2-135m-instruct"))
    parser.add_argument("--out", type=Path, default=Path("weights/adapters") / NAME)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=1.5)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
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
