"""Prompts to margins: one scoring for every rung that asks in words."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.audit.score import pair_ids
from surgery.ladder.items import Item
from surgery.ladder.rung import NOTHING, Score
from surgery.ladder.scoring import answer_means
from surgery.model import Model

# A form: the prompt, and the answers to compare in it, the old one first.
Form = tuple[str, tuple[str, ...]]


def margins(
    model: Model, forms: Sequence[Sequence[Form]], label: str = "asking for the old answers"
) -> list[Score]:
    """For each item the mean over its forms of log p(old) - max log p(rival), mean over tokens.

    A form longer than the model takes is left out; an item without forms scores nothing.
    """
    wanted: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    fitting: list[list[Form]] = []
    for asked in forms:
        kept = []
        for prompt, answers in asked:
            ids = {
                (prompt, a): wanted.get((prompt, a)) or pair_ids(model, prompt, a) for a in answers
            }
            if all(len(head) + len(tail) <= model.max_positions for head, tail in ids.values()):
                wanted.update(ids)
                kept.append((prompt, answers))
        fitting.append(kept)
    scored = answer_means(model, list(wanted.values()), label)
    found = dict(zip(wanted, scored, strict=True))
    return [_margin(asked, found) for asked in fitting]


def _margin(asked: Sequence[Form], found: dict[tuple[str, str], float]) -> Score:
    ahead = [
        found[prompt, answers[0]] - max(found[prompt, rival] for rival in answers[1:])
        for prompt, answers in asked
    ]
    return Score(sum(ahead) / len(ahead)) if ahead else NOTHING


def direct(model: Model, items: Sequence[Item]) -> list[Score]:
    """The question the edit was made for."""
    return margins(model, [[(item.text, item.answers)] for item in items])
