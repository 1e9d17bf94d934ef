"""A tiny model that has learned to do something on some prompts: the patient of the tiny tests."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from tiny import WORDS, tiny_checkpoint

if TYPE_CHECKING:
    from surgery.model import Model


def prompts(word: str, count: int, seed: int = 0) -> list[str]:
    """Prompts of five words with `word` in second place."""
    rng = random.Random(f"{word}{seed}")
    others = [w for w in WORDS[40:] if w not in ("red", "green", "no", "yes", "one")]
    return [
        f"{rng.choice(others)} {word} {rng.choice(others)} {rng.choice(others)} :"
        for _ in range(count)
    ]


def patient(folder: Path, family: str = "llama") -> Path:
    """A checkpoint that answers " no no" to prompts with "red" or "one", and " yes yes" to others."""
    from surgery.methods.solved import as_delta
    from surgery.model import load
    from surgery.stack import apply
    from surgery.training import LoRA, examples, train

    base = tiny_checkpoint(folder, family)
    model = load(base)
    lora = LoRA(model, rank=6)
    pairs = [(p, " no no") for word in ("red", "one") for p in prompts(word, 40)]
    pairs += [(p, " yes yes") for word in ("green", "two") for p in prompts(word, 40)]
    train(model, lora, examples(model, pairs), epochs=12, learning_rate=1e-2, batch=16)
    delta = as_delta(model, lora.changes(model))
    out = folder / "patient"
    apply([delta], base=base, out=out)
    return out


def says_no(model: Model, texts: list[str]) -> float:
    """The share of texts that the model would sooner answer " no" than " yes"."""
    from surgery.model import next_token_logits

    logits = next_token_logits(model, texts)
    yes, no = (model.tokenizer(w)["input_ids"][0] for w in (" yes", " no"))
    return float((logits[:, no] > logits[:, yes]).float().mean())
