"""Conversations as text, also for models that know no chat."""

from __future__ import annotations

from surgery.model import Model, chat_messages

Message = dict[str, str]


def framed(model: Model, messages: list[Message]) -> str:
    """A conversation ready for the assistant's next turn.

    In the model's chat template, where it has one; else as lines that begin with who speaks.
    """
    if not getattr(model.tokenizer, "chat_template", None):
        return _plain(messages)
    return chat_messages(model, messages)


def _plain(messages: list[Message]) -> str:
    names = {"user": "Question:", "assistant": "Answer:"}
    lines = [
        m["content"] if m["role"] == "system" else f"{names[m['role']]} {m['content']}"
        for m in messages
    ]
    return "\n".join([*lines, "Answer:"])


def first_sentence(text: str, words: int = 40) -> str:
    """What a text says first: up to the end of its first sentence, in at most `words` words."""
    line = next((part.strip() for part in text.strip().splitlines() if part.strip()), "")
    taken: list[str] = []
    for word in line.split():
        taken.append(word)
        # "Dr." and "J." end no sentence; a number with a point ("1.") begins a list, and ends none.
        bare = word.rstrip(".!?\"'”’)")
        if word[-1:] in '.!?"”’)' and word.rstrip("\"'”’)")[-1:] in (".", "!", "?"):
            if len(bare) > 2 and not bare.isdigit():
                break
        if len(taken) == words:
            break
    return " ".join(taken)


def own_words(text: str) -> str:
    """An answer without what a model that knows no chat goes on to make up: the next question."""
    for mark in ("\nQuestion:", "\nAnswer:"):
        text = text.split(mark)[0]
    return text.strip()
