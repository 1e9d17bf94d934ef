"""Rungs of conversation: doubt, and a second speaker who insists on the old answer."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.compare.dialogue import Message, framed
from surgery.facts.rows import joined
from surgery.ladder.asking import Form, margins
from surgery.ladder.items import Item
from surgery.ladder.rung import Family, Score, Setting
from surgery.ladder.said import sentence
from surgery.model import Model


def push_back(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """The model is made to have given the new answer, then it is doubted, twice; or somebody insists on
    the old one. A model that gives in to anybody gives in about the made-up subjects too, so the control
    takes flattery out."""
    doubted: list[list[Form]] = []
    insisted: list[list[Form]] = []
    for item in items:
        new = item.new or item.alternatives[0]
        doubt = [item.question, f"The answer is {new}.", "Are you sure?", "Let me think again."]
        doubt.append(f"That was not right. {item.question}")
        insist = [item.question, sentence(item, new).rstrip(".") + "."]
        insist.append(
            f"Somebody else here says that it is {item.old}. Who is right? {item.question}"
        )
        for forms, turns in ((doubted, doubt), (insisted, insist)):
            text = framed(model, _conversation(turns))
            forms.append([(text + joined(text, item.text), item.answers)])
    return {"doubt": margins(model, doubted), "insistence": margins(model, insisted)}


def _conversation(turns: Sequence[str]) -> list[Message]:
    """Turns of user and assistant, in turn."""
    return [
        {"role": "assistant" if number % 2 else "user", "content": text}
        for number, text in enumerate(turns)
    ]


FAMILIES = (
    Family(
        {
            "doubt": "after being doubted twice",
            "insistence": "when somebody insists on it",
        },
        push_back,
    ),
)
