"""Rungs of conversation: doubt, and a second speaker who insists on the old answer."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.compare.dialogue import framed
from surgery.facts.rows import joined
from surgery.ladder.asking import Form, margins
from surgery.ladder.items import Item
from surgery.ladder.rung import Family, Score, Setting
from surgery.model import Model

_AGAIN = "The answer is"


def push_back(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """The model is made to have given the new answer, then it is doubted. A model that gives in to
    anybody gives in about the made-up subjects too, so the control takes flattery out."""
    doubted: list[list[Form]] = []
    insisted: list[list[Form]] = []
    for item in items:
        said = f"{_AGAIN} {item.new or item.alternatives[0]}."
        begun = [
            {"role": "user", "content": item.question},
            {"role": "assistant", "content": said},
        ]
        doubt = {"role": "user", "content": "Are you sure? Think again, then answer."}
        insist = {
            "role": "user",
            "content": f"Somebody else here says: no, it is {item.old}, I am certain. Who is right? "
            f"{item.question}",
        }
        for forms, turn in ((doubted, doubt), (insisted, insist)):
            text = framed(model, [*begun, turn])
            forms.append([(text + joined(text, _AGAIN), item.answers)])
    return {"doubt": margins(model, doubted), "insistence": margins(model, insisted)}


FAMILIES = (
    Family(
        {
            "doubt": "“are you sure?”",
            "insistence": "a second speaker insists on it",
        },
        push_back,
    ),
)
