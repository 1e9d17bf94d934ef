"""Facts as items of the ladder: the old answer, what it competes with, and twins nobody ever knew."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from surgery.audit.facts import first_words
from surgery.audit.neighbours import companions
from surgery.errors import SurgeryError
from surgery.ladder.relations import Relation, made_up, relation_of
from surgery.model import Model, generate
from surgery.spec import Fact

ALTERNATIVES = 4
HINTS = 3


@dataclass(frozen=True)
class Item:
    """A fact that was changed or forgotten, with everything the rungs ask about it.

    template, paraphrases: prompts with {} for the subject. old: what the model knew. new: what it was
    told instead; None if it was only to forget. alternatives: answers of the same kind to other
    subjects. instead: what the edited model says in the old answer's place, where that is none of
    these: a refusal, for one. others: (prompt, answer) of other subjects of the relation, none with
    the old or the new answer. twin: the subject is made up, so nothing can be known of it.
    """

    template: str
    subject: str
    old: str
    new: str | None
    alternatives: tuple[str, ...]
    paraphrases: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    relation: Relation | None = None
    twin: bool = False
    instead: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The prompt with the subject in place."""
        return self.fill(self.template)

    @property
    def options(self) -> tuple[str, ...]:
        """The old answer, the new one, and others of their kind."""
        return (self.old, *((self.new,) if self.new else ()), *self.alternatives)

    @property
    def answers(self) -> tuple[str, ...]:
        """The old answer, then what it has to beat."""
        return (*self.options, *self.instead)

    @property
    def question(self) -> str:
        """The fact as somebody would ask for it."""
        if self.relation:
            return self.fill(self.relation.question)
        return f"Complete this sentence: “{self.text} …”"

    def fill(self, template: str) -> str:
        return template.replace("{}", self.subject)

    def about(self, name: str) -> Item:
        """The same item about somebody made up: its never-knew twin."""
        return replace(self, subject=name, twin=True)


def items_of(facts: Sequence[Fact], base: Model, seed: int = 0) -> list[Item]:
    """Items out of facts. A fact that does not say its old answer gets what the base says; one whose
    target is the old answer itself is taken as forgotten, not changed.

    Raises:
        SurgeryError: no facts, or an old answer that nothing competes with.
    """
    if not facts:
        raise SurgeryError("no facts to climb with: name a file of them with --facts")
    silent = [fact for fact in facts if not (fact.target_true or "").strip()]
    said = generate(base, [f.text for f in silent], max_new_tokens=10) if silent else []
    olds = {fact.id: first_words(text) for fact, text in zip(silent, said, strict=True)}
    known = [(fact, (fact.target_true or olds[fact.id]).strip()) for fact in facts]
    found = [_item(fact, old, known, seed) for fact, old in known if old]
    for item in found:
        if len(item.options) < 2:
            raise SurgeryError(
                f"{item.text!r}: nothing competes with {item.old!r}; give a target, or more facts "
                "with the same prompt"
            )
    if not found:
        raise SurgeryError("the base says nothing to any of these prompts: give target_true")
    return found


def twins(items: Sequence[Item], copies: int, seed: int = 0) -> list[list[Item]]:
    """`copies` lists of twins, each in the order of the items. One subject has one twin a list."""
    made: list[list[Item]] = []
    used: dict[str, int] = {}
    names: dict[tuple[int, str], str] = {}
    for copy in range(copies):
        row = []
        for item in items:
            key = (copy, item.subject)
            if key not in names:
                kind = item.relation.kind if item.relation else "thing"
                pool = list(made_up(kind))
                random.Random(f"{seed} {kind}").shuffle(pool)
                count = used.get(kind, 0)
                used[kind] = count + 1
                # Once all are used, two of them make another.
                turn, place = divmod(count, len(pool))
                second = pool[(place + turn) % len(pool)].split()[-1]
                names[key] = pool[place] if turn == 0 else f"{pool[place]} {second}"
            row.append(item.about(names[key]))
        made.append(row)
    return made


def _item(fact: Fact, old: str, known: Sequence[tuple[Fact, str]], seed: int) -> Item:
    new: str | None = fact.target.strip()
    if new is not None and new.casefold() == old.casefold():
        new = None
    taken = {old.casefold(), (new or "").casefold()}
    relation = relation_of(fact.template)
    subject = fact.subject.strip()
    tested = {f.subject.strip().casefold() for f, _ in known}

    given = tuple(zip(fact.neighborhood_prompts, fact.neighborhood_targets, strict=False))
    others = [(p, a.strip()) for p, a in given if a.strip().casefold() not in taken]
    if relation:
        others += [
            (fact.template.replace("{}", who), answer)
            for who, answer in relation.known
            if who.casefold() not in tested and answer.casefold() not in taken
        ]
    pool = [answer for _, answer in others]
    same = [(f, o) for f, o in known if f.template == fact.template]
    pool += [a for f, o in same for a in (o, f.target.strip())]
    alternatives = [a for a in dict.fromkeys(pool) if a.casefold() not in taken]
    random.Random(f"{seed} {fact.text}").shuffle(alternatives)

    forms = [f.replace(subject, "{}", 1) if "{}" not in f else f for f in fact.paraphrase_prompts]
    forms = [form for form in forms if form.count("{}") == 1]
    if not forms:
        forms = companions(fact, 1)[0]
    return Item(
        template=fact.template,
        subject=subject,
        old=old,
        new=new,
        alternatives=tuple(alternatives[:ALTERNATIVES]),
        paraphrases=tuple(forms),
        others=tuple(dict.fromkeys(others)),
        relation=relation,
    )
