"""Running a model: chat templates, greedy and sampled answers, log-probabilities of continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from surgery.model.batch import by_length, encode, pad, tokenize
from surgery.model.model import Model
from surgery.progress import meter


def chat(model: Model, prompt: str, system: str | None = None) -> str:
    """The prompt as the model's chat template frames it; as it is for a model without one."""
    if not getattr(model.tokenizer, "chat_template", None):
        return prompt
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    return chat_messages(model, messages)


def chat_messages(model: Model, messages: list[dict[str, str]]) -> str:
    """A conversation as text, ready for the assistant's next turn."""
    return model.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )


def is_templated(model: Model, text: str) -> bool:
    """Whether a text brings its own special tokens, so that none are to be added."""
    return bool(getattr(model.tokenizer, "chat_template", None)) and any(
        text.startswith(token) for token in model.tokenizer.all_special_tokens
    )


@dataclass(frozen=True)
class Said:
    """What a model said. ended: it stopped of its own accord, and was not cut off at the token limit."""

    text: str
    ended: bool


def generate(
    model: Model,
    prompts: Sequence[str],
    max_new_tokens: int = 40,
    batch_tokens: int = 4096,
    temperature: float = 0.0,
    seed: int = 0,
    label: str = "answering",
) -> list[str]:
    """What the model says after each prompt, prompt not included. Greedy unless a temperature is given."""
    found = say(model, prompts, max_new_tokens, batch_tokens, temperature, seed, label)
    return [one.text for one in found]


@torch.no_grad()
def say(
    model: Model,
    prompts: Sequence[str],
    max_new_tokens: int = 40,
    batch_tokens: int = 4096,
    temperature: float = 0.0,
    seed: int = 0,
    label: str = "answering",
) -> list[Said]:
    """`generate`, and whether each answer came to its own end."""
    answers = [Said("", True)] * len(prompts)
    special = [not is_templated(model, prompt) for prompt in prompts]
    rows = [tokenize(model, p, s) for p, s in zip(prompts, special, strict=True)]
    config = model.hf.generation_config
    stops = config.eos_token_id if config.eos_token_id is not None else model.tokenizer.eos_token_id
    ends = set(stops if isinstance(stops, list) else [stops])
    with meter(label, len(prompts)) as progress:
        for index in by_length([len(r) + max_new_tokens for r in rows], batch_tokens):
            batch = pad([rows[i] for i in index], model, side="left")
            if temperature:
                torch.manual_seed(seed)
            output = model.hf.generate(
                **{k: v for k, v in batch.inputs().items() if k != "position_ids"},
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                temperature=temperature or None,
                top_p=None,
                top_k=0 if temperature else None,
                repetition_penalty=1.0,
                eos_token_id=stops,
                pad_token_id=model.tokenizer.pad_token_id,
            )
            new = output[:, batch.ids.shape[1] :]
            texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
            for i, text, ids in zip(index, texts, new.tolist(), strict=True):
                answers[i] = Said(text, not ends.isdisjoint(ids))
            progress.advance(len(index))
    return answers


def continuation_ids(model: Model, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of what follows it, split where generation would split them."""
    special = not is_templated(model, prompt)
    head = tokenize(model, prompt, special)
    whole = tokenize(model, prompt + continuation, special)
    if whole[: len(head)] == head and len(whole) > len(head):
        return head, whole[len(head) :]
    return head, tokenize(model, continuation, special=False)


@torch.no_grad()
def next_token_logits(
    model: Model, prompts: Sequence[str], batch_tokens: int = 4096
) -> torch.Tensor:
    """Logits (prompts, vocabulary) of the first token after each prompt, float32."""
    special = [not is_templated(model, prompt) for prompt in prompts]
    rows = [tokenize(model, p, s) for p, s in zip(prompts, special, strict=True)]
    found: list[torch.Tensor | None] = [None] * len(rows)
    for index in by_length([len(r) for r in rows], batch_tokens):
        batch = pad([rows[i] for i in index], model, side="left")
        logits = model.hf(**batch.inputs(), use_cache=False, logits_to_keep=1).logits[:, -1].float()
        for i, row in zip(index, logits, strict=True):
            found[i] = row
    return torch.stack([row for row in found if row is not None])


__all__ = [
    "Said",
    "chat",
    "chat_messages",
    "continuation_ids",
    "encode",
    "generate",
    "is_templated",
    "next_token_logits",
    "say",
]
