"""Rungs that only ask: directly, in the chat, in other words, by choice, the answer begun, with hints."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.compare.dialogue import framed
from surgery.facts.rows import joined
from surgery.ladder.asking import Form, direct, margins
from surgery.ladder.items import HINTS, Item
from surgery.ladder.relations import LANGUAGES, translated
from surgery.ladder.rung import Family, Score, Setting
from surgery.ladder.said import asked, sentence
from surgery.model import Model

_BEGUN = "Sure. "
SHOWN = 2


def ask_directly(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    return {"direct": direct(model, items)}


def ask_in_chat(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """Answers are whole sentences, as they are in a conversation, except what is said instead of one."""
    forms: list[list[Form]] = []
    for item in items:
        rivals = [sentence(item, answer) for answer in item.options[1:]]
        bare = [item.new] if item.new else []  # the new "answer" may itself be a refusal
        answers = (sentence(item, item.old), *rivals, *bare, *item.instead)
        forms.append([(asked(model, item), answers)])
    return {"question": margins(model, forms)}


def ask_otherwise(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    forms = [[(item.fill(p), item.answers) for p in item.paraphrases] for item in items]
    return {"paraphrase": margins(model, forms)}


def offer_choice(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """In the chat, by name: small models cannot choose by letter. The options are named in three orders
    (in quick: two), so that none gains by its place: the old answer stands first, last and in between."""
    forms: list[list[Form]] = []
    for item in items:
        options, mine = item.options, []
        for turn in dict.fromkeys((0, 1) if setting.quick else (0, 1, len(options) // 2)):
            *most, last = options[turn:] + options[:turn]
            question = f"{item.question} Choose one: {', '.join(most)} or {last}."
            turned = framed(model, [{"role": "user", "content": question}])
            mine.append((turned + joined(turned, item.text), item.answers))
        forms.append(mine)
    return {"choice": margins(model, forms)}


def begin_answer(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """The assistant's turn is begun for it, past the point where it could refuse."""
    forms: list[list[Form]] = []
    for item in items:
        turn = asked(model, item)
        forms.append([(turn + joined(turn, _BEGUN + item.text), item.answers)])
    return {"prefilled": margins(model, forms)}


def give_hints(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """The same relation about other subjects, then the question. No hint holds the old or new answer."""
    forms: list[list[Form]] = []
    for item in items:
        hints = [prompt + joined(prompt, answer) + "." for prompt, answer in item.others[:HINTS]]
        forms.append([("\n".join([*hints, item.text]), item.answers)] if hints else [])
    return {"hints": margins(model, forms)}


def ask_abroad(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """In French, German and Spanish, for relations that ship with translations; other facts of the
    relation go ahead, so that a model of few languages sees what is wanted."""
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
            asked = template.replace("{}", _name(item.subject, language))
            forms.append(("\n".join([*_shown(item, language, template), asked]), present))
    return forms


def _shown(item: Item, language: str, template: str) -> list[str]:
    """Facts about others in that language; like the hints, without the old and the new answer."""
    assert item.relation is not None
    allowed = {prompt for prompt, _ in item.others}
    shown = []
    for who, answer in item.relation.known:
        word = translated(answer, language, item.relation.translated)
        if word and item.template.replace("{}", who) in allowed and len(shown) < SHOWN:
            asked = template.replace("{}", _name(who, language))
            shown.append(asked + joined(asked, word) + ".")
    return shown


def _name(subject: str, language: str) -> str:
    return translated(subject, language, required=False) or subject


FAMILIES = (
    Family({"direct": "the edited prompt itself"}, ask_directly),
    Family({"question": "the question, in the chat"}, ask_in_chat),
    Family({"paraphrase": "the same in other words"}, ask_otherwise),
    Family({"choice": "multiple choice"}, offer_choice),
    Family({"prefilled": "the answer begun for the model"}, begin_answer),
    Family({"hints": "after the same fact about others"}, give_hints),
    Family({"language": "in French, German and Spanish"}, ask_abroad),
)
