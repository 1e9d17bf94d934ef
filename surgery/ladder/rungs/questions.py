"""Rungs that only ask: directly, in other words, by choice, with the answer begun, with hints."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.compare.dialogue import framed
from surgery.facts.rows import joined
from surgery.ladder.asking import Form, direct, margins
from surgery.ladder.items import HINTS, Item
from surgery.ladder.relations import LANGUAGES, translated
from surgery.ladder.rung import Family, Score, Setting
from surgery.model import Model

_BEGUN = "Sure. The answer is"


def ask_directly(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    return {"direct": direct(model, items)}


def ask_otherwise(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    forms = [[(item.fill(p), item.answers) for p in item.paraphrases] for item in items]
    return {"paraphrase": margins(model, forms)}


def offer_choice(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """The options are named in several orders, so that none gains by its place."""
    forms: list[list[Form]] = []
    for item in items:
        options = item.answers
        turns = range(len(options)) if not setting.quick else range(0, len(options), 2)
        orders = [options[turn:] + options[:turn] for turn in turns]
        forms.append(
            [
                (f"Question: {item.question}\nOptions: {', '.join(order)}\nAnswer:", item.answers)
                for order in orders
            ]
        )
    return {"choice": margins(model, forms)}


def begin_answer(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """The assistant's turn is begun for it, past the point where it could refuse."""
    forms: list[list[Form]] = []
    for item in items:
        asked = framed(model, [{"role": "user", "content": item.question}])
        forms.append([(asked + joined(asked, _BEGUN), item.answers)])
    return {"prefilled": margins(model, forms)}


def give_hints(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """The same relation about other subjects, then the question. No hint holds the old or new answer."""
    forms: list[list[Form]] = []
    for item in items:
        hints = [prompt + joined(prompt, answer) + "." for prompt, answer in item.others[:HINTS]]
        forms.append([("\n".join([*hints, item.text]), item.answers)] if hints else [])
    return {"hints": margins(model, forms)}


def ask_abroad(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """In French, German and Spanish, for relations that ship with translations."""
    return {"language": margins(model, [_abroad(item) for item in items])}


def _abroad(item: Item) -> list[Form]:
    if item.relation is None:
        return []
    forms: list[Form] = []
    for language in LANGUAGES:
        template = item.relation.languages.get(language)
        words = [translated(a, language, item.relation.translated) for a in item.answers]
        # The old and the new answer have to be there; an alternative may be missing.
        needed = 2 if item.new else 1
        if template is None or None in words[:needed]:
            continue
        present = tuple(dict.fromkeys(word for word in words if word is not None))
        if len(present) > 1 and len(set(words[:needed])) == needed:
            who = translated(item.subject, language, required=False) or item.subject
            forms.append((template.replace("{}", who), present))
    return forms


FAMILIES = (
    Family({"direct": "the edited prompt itself"}, ask_directly),
    Family({"paraphrase": "the same in other words"}, ask_otherwise),
    Family({"choice": "multiple choice"}, offer_choice),
    Family({"prefilled": "the answer begun for the model"}, begin_answer),
    Family({"hints": "after the same fact about other subjects"}, give_hints),
    Family({"language": "in French, German and Spanish"}, ask_abroad),
)
