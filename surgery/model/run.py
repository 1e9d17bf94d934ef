"""Running a model: chat templates, greedy and sampled answers, log-probabilities of continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from surgery.errors import SurgeryError
from surgery.model.batch import by_length, check_length, pad, tokenize
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
    """A conversation as text, ready for the assistant's next turn. A template that knows no system turn
    gets its text in front of the first question.

    Raises:
        SurgeryError: the template cannot frame this conversation.
    """
    try:
        return model.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except Exception as error:  # templates raise jinja2's errors, and not always the same one
        if len(messages) > 1 and messages[0]["role"] == "system":
            system, question, *rest = messages
            joined = {**question, "content": f"{system['content']}\n\n{question['content']}"}
            return chat_messages(model, [joined, *rest])
        raise SurgeryError(
            f"the chat template of {model.checkpoint.path.name} cannot frame this conversation: {error}"
        ) from None


def is_templated(model: Model, text: str) -> bool:
    """Whether a text brings its own special tokens, so that none are to be added."""
    return bool(getattr(model.tokenizer, "chat_template", None)) and any(
        text.startswith(token) for token in model.tokenizer.all_special_tokens
    )


def end_tokens(model: Model) -> set[int]:
    """Ids that end a turn."""
    ends = model.hf.generation_config.eos_token_id
    if ends is None:
        ends = model.tokenizer.eos_token_id
    return set() if ends is None else set(ends) if isinstance(ends, list | tuple) else {int(ends)}


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
    """`generate`, and whether each answer came to its own end.

    Raises:
        SurgeryError: no token is to be said, a temperature below zero, or a prompt that is too long.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise SurgeryError(
            f"an answer of {max_new_tokens} tokens at temperature {temperature:g}: at least one token, "
            "and no temperature below 0"
        )
    answers = [Said("", True)] * len(prompts)
    rows = [tokenize(model, prompt, not is_templated(model, prompt)) for prompt in prompts]
    check_length(model, rows, max_new_tokens)
    ends = end_tokens(model)
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
                eos_token_id=sorted(ends) or None,
                pad_token_id=model.tokenizer.pad_token_id,
            )
            new = output[:, batch.ids.shape[1] :]
            texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
            for i, text, ids in zip(index, texts, new.tolist(), strict=True):
                answers[i] = Said(text, not ends.isdisjoint(ids))
            progress.advance(len(index))
    return answers


def continuation_ids(model: Model, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of what follows it, split where generation would split them.

    An empty prompt becomes the beginning-of-sequence token (or, without one, the end-of-sequence token):
    something has to predict the first token.
    """
    special = not is_templated(model, prompt)
    eos = model.tokenizer.eos_token_id

    def ids(text: str) -> list[int]:
        found = list(tokenize(model, text, special))
        # Some tokenizers append a token of their own.
        while special and len(found) > 1 and found[-1] == eos:
            found.pop()
        return found

    if not prompt:
        start = model.tokenizer.bos_token_id
        return [eos if start is None else start], tokenize(model, continuation, special=False)
    head, whole = ids(prompt), ids(prompt + continuation)
    if whole[: len(head)] == head and len(whole) > len(head):
        return head, whole[len(head) :]
    return head, tokenize(model, continuation, special=False)


@torch.no_grad()
def next_token_logits(
    model: Model, prompts: Sequence[str], batch_tokens: int = 4096
) -> torch.Tensor:
    """Logits (prompts, vocabulary) of the first token after each prompt, float32."""
    rows = [tokenize(model, prompt, not is_templated(model, prompt)) for prompt in prompts]
    check_length(model, rows)
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
    "end_tokens",
    "generate",
    "is_templated",
    "next_token_logits",
    "say",
]
