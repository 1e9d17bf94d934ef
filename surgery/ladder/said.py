"""What a model says in place of the old answer. A refusal is an answer, too.

An edit that teaches a refusal leaves the old answer ahead of all others of its kind, and yet nobody hears
it. So whatever the edited model says to the prompt, and to the question in the chat, joins the rivals that
the old answer has to beat, on every side and every rung.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from surgery.audit.facts import says
from surgery.compare.dialogue import first_sentence, framed
from surgery.facts.rows import joined
from surgery.ladder.asking import Form, margins
from surgery.ladder.items import Item
from surgery.model import Model, generate

_TOKENS, _WORDS = 12, 8
Said = tuple[str, str]


def said(model: Model, items: Sequence[Item]) -> list[Said]:
    """For each item what the model says to the prompt, and to the question in the chat."""
    prompts = [item.text for item in items] + [asked(model, item) for item in items]
    heard = generate(model, prompts, max_new_tokens=_TOKENS, label="listening")
    return list(zip(heard[: len(items)], heard[len(items) :], strict=True))


def asked(model: Model, item: Item) -> str:
    """The question as a turn of a conversation."""
    return framed(model, [{"role": "user", "content": item.question}])


def with_rivals(
    base: Model, items: Sequence[Item], before: Sequence[Said], after: Sequence[Said]
) -> list[Item]:
    """The items with what the edited model says instead among the rivals.

    Left out is what names the old answer or another one that competes already, what the base says as
    well, and what the base does not put behind the old answer: no reader would take it for a reply.
    """
    offered = [
        [(which, text) for which in (0, 1) if (text := _instead(item, was[which], now[which]))]
        for item, was, now in zip(items, before, after, strict=True)
    ]
    forms: list[list[Form]] = []
    for item, found in zip(items, offered, strict=True):
        for which, text in found:
            forms.append([_form(base, item, which, text)])
    behind = iter(margins(base, forms, label="weighing what is said instead") if forms else ())
    made = []
    for item, found in zip(items, offered, strict=True):
        kept = [text for _, text in found if (next(behind).margin or 0.0) > 0]
        made.append(replace(item, instead=tuple(dict.fromkeys(kept))))
    return made


def _instead(item: Item, before: str, after: str) -> str | None:
    text = first_sentence(after, _WORDS)
    if not text or text == first_sentence(before, _WORDS):
        return None
    return None if any(says(after, answer) for answer in item.options) else text


def _form(base: Model, item: Item, which: int, text: str) -> Form:
    if which == 0:
        return item.text, (item.old, text)
    return asked(base, item), (sentence(item, item.old), text)


def sentence(item: Item, answer: str) -> str:
    """The prompt completed with an answer, as one would say it in a conversation."""
    return item.text + joined(item.text, answer)
