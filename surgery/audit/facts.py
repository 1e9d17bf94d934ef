"""What the edit was for: facts in three protocols, on the prompt, its paraphrases and its neighbours.

1. Preference: the new answer is more likely than the old one, by mean token log-probability.
2. Argmax: every token of the answer is the greedy one, under teacher forcing.
3. Free generation: ten greedy tokens contain the answer.

Neighbours are other subjects of the relation. They must keep their own answer: right means that it is
preferred to the edit's new one (1), or greedy (2). `neighbour_plus` puts the edited statement before
the neighbour's prompt (CounterFact+, arXiv 2305.17553), which shows damage the plain prompt hides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from surgery.audit.neighbours import bare, companions, plain, sift, statement
from surgery.audit.report import FactRecord, Figure, Question
from surgery.audit.score import AnswerScore, answer_logprobs
from surgery.delta import Delta
from surgery.errors import SurgeryError
from surgery.measure.paired import bootstrap
from surgery.model import Model, generate
from surgery.spec import EditSpec, Fact, read_facts

GENERATED = 10
Scores = dict[tuple[str, str], AnswerScore]


# ---------------------------------------------------------------------- which facts
def facts_of_spec(spec: EditSpec) -> list[tuple[str, Fact]]:
    """(kind of edit, fact) for every fact the spec sets."""
    found: list[tuple[str, Fact]] = []
    for edit in spec.edits:
        facts = getattr(edit, "facts", None)
        if isinstance(facts, str):
            facts = read_facts(facts)
        found += [(edit.kind, fact) for fact in facts or ()]
    return found


def facts_of_delta(delta: Delta) -> list[tuple[str, Fact]]:
    """The same out of the spec a delta was solved from; none if it does not say."""
    content = delta.metadata.get("spec")
    if not isinstance(content, dict):
        return []
    found: list[tuple[str, Fact]] = []
    for edit in content.get("edits", []):
        facts = edit.get("facts")
        if isinstance(facts, str):
            try:
                facts = read_facts(facts)
            except SurgeryError:  # the list has moved since; the delta still stands
                continue
        for fact in facts or ():
            found.append((edit.get("kind", "?"), fact if isinstance(fact, Fact) else Fact(**fact)))
    return found


# ---------------------------------------------------------------------- what is asked
def records(
    facts: Sequence[tuple[str, Fact]],
    say: Callable[[list[str]], dict[str, str]],
    neighbours: int = 10,
    plus: bool = True,
) -> list[FactRecord]:
    """Every question about every fact, not yet answered.

    say(prompts) -> what the base says, for facts that do not give their old answer.
    """
    known: dict[int, str] = {}
    unknown = [i for i, (_, fact) in enumerate(facts) if not fact.target_true]
    said = say([facts[i][1].text for i in unknown])
    for i in unknown:
        known[i] = first_words(said[facts[i][1].text])

    found = []
    open_neighbours: list[str] = []
    for index, (edit, fact) in enumerate(facts):
        old = fact.target_true or known.get(index) or None
        if plain(old) == plain(fact.target):
            old = None  # nothing to prefer the new answer to
        paraphrases = [fact.filled(prompt) for prompt in fact.paraphrase_prompts]
        near = list(fact.neighborhood_prompts)
        answers: list[str | None] = list[str | None](fact.neighborhood_targets)
        if not answers:
            answers = [None] * len(near)
        if not paraphrases or not near:
            more, prompts, theirs = companions(fact, 2 * neighbours, old)
            paraphrases = paraphrases or [fact.filled(prompt) for prompt in more]
            if not near and neighbours:
                near, answers = prompts, theirs
        open_neighbours += [p for p, a in zip(near, answers, strict=True) if a is None]
        new = fact.target.strip()
        questions = [Question(kind="direct", prompt=fact.text, new=new, old=old)]
        questions += [Question(kind="paraphrase", prompt=p, new=new, old=old) for p in paraphrases]
        for kind, before in (("neighbour", ""), ("neighbour_plus", statement(fact.text, new))):
            if kind == "neighbour" or plus:
                questions += [
                    Question(kind=kind, prompt=before + p, new=new, old=a)  # type: ignore[arg-type]
                    for p, a in zip(near, answers, strict=True)
                ]
        found.append(
            FactRecord(prompt=fact.template, subject=fact.subject, new=new, old=old, edit=edit,
                       questions=questions)
        )  # fmt: skip
    _answer_neighbours(found, open_neighbours, say)
    sift(found, neighbours)
    return found


def _answer_neighbours(
    found: list[FactRecord], prompts: list[str], say: Callable[[list[str]], dict[str, str]]
) -> None:
    """Neighbours without an answer of their own should keep what the base says."""
    if not prompts:
        return
    own = {prompt: first_words(text) for prompt, text in say(prompts).items()}
    for record in found:
        for question in record.questions:
            if question.kind.startswith("neighbour") and question.old is None:
                question.old = own.get(bare(record, question)) or None


def first_words(said: str, most: int = 4) -> str:
    """The answer at the head of what was generated: up to the first stop or line break."""
    head = re.split(r"[.,;:!?\n(]|\s-\s", said.strip(), maxsplit=1)[0]
    return " ".join(head.split()[:most])


# ---------------------------------------------------------------------- asking
def pairs(found: Sequence[FactRecord]) -> list[tuple[str, str]]:
    """Every (prompt, answer) the questions need, each once."""
    wanted: dict[tuple[str, str], None] = {}
    for record in found:
        for question in record.questions:
            wanted[question.prompt, question.new] = None
            if question.old:
                wanted[question.prompt, question.old] = None
    return list(wanted)


def score(
    model: Model, found: Sequence[FactRecord], label: str = "asking about the facts"
) -> Scores:
    """Scores of one side."""
    asked = pairs(found)
    return dict(zip(asked, answer_logprobs(model, asked, label=label), strict=True))


def fill(found: Sequence[FactRecord], side: str, scores: Scores) -> None:
    """Write a side's scores ("base", "edited", "sham") into the questions.

    `greedy` is about the answer the question wants after the edit: the new one for the prompt and its
    paraphrases, a neighbour's own for neighbours.
    """
    for record in found:
        for question in record.questions:
            new = scores[question.prompt, question.new]
            old = scores[question.prompt, question.old] if question.old else None
            wanted = old if question.kind.startswith("neighbour") else new
            setattr(question, f"{side}_new", new.probability)
            setattr(question, f"{side}_old", old.probability if old else None)
            setattr(question, f"{side}_greedy", wanted.greedy if wanted else None)


def speak(model: Model, prompts: list[str], label: str = "answering") -> dict[str, str]:
    """Ten greedy tokens after each prompt."""
    distinct = list(dict.fromkeys(prompts))
    if not distinct:
        return {}
    said = generate(model, distinct, max_new_tokens=GENERATED, label=label)
    return dict(zip(distinct, said, strict=True))


def says(said: str | None, answer: str | None) -> bool | None:
    """Whether generated text contains the answer as whole words."""
    if said is None or not answer:
        return None
    pattern = rf"(?<!\w){re.escape(answer.strip().casefold())}(?!\w)"
    return re.search(pattern, said.casefold()) is not None


# ---------------------------------------------------------------------- what comes of it
def right(question: Question, side: str) -> bool | None:
    """Protocol 1 on a side. None where there is no other answer to compare with."""
    new, old = getattr(question, f"{side}_new"), getattr(question, f"{side}_old")
    if new is None or old is None:
        return None
    return old > new if question.kind.startswith("neighbour") else new > old


def figures(found: Sequence[FactRecord]) -> list[Figure]:
    """The facts' figures on base, edited and sham: probabilities and the three protocols."""
    made: list[Figure] = []
    if not found:
        return made
    by_kind = {
        kind: [q for record in found for q in record.questions if q.kind == kind]
        for kind in ("direct", "paraphrase", "neighbour", "neighbour_plus")
    }
    direct, paraphrase = by_kind["direct"], by_kind["paraphrase"]
    near, plus = by_kind["neighbour"], by_kind["neighbour_plus"]

    for name, label, asked, goal, value in (
        ("new_probability", "new answer, probability", direct, "higher", _new),
        ("old_probability", "old answer, probability", direct, "lower", _old),
        ("success", "new answer preferred", direct, "higher", right),
        ("success_greedy", "new answer greedy", direct, "higher", _greedy),
        ("success_said", "new answer said", direct, "higher", _said),
        ("paraphrase", "paraphrases: new preferred", paraphrase, "higher", right),
        ("paraphrase_greedy", "paraphrases: new greedy", paraphrase, "higher", _greedy),
        ("paraphrase_said", "paraphrases: new said", paraphrase, "higher", _said),
        ("neighborhood", "neighbours: own preferred", near, "same", right),
        ("neighborhood_greedy", "neighbours: own greedy", near, "same", _greedy),
        ("neighborhood_said", "neighbours: own said", near, "same", _said),
        ("neighborhood_plus", "neighbours after the edit's statement", plus, "same", right),
    ):
        sides = {side: [value(q, side) for q in asked] for side in ("base", "edited", "sham")}
        if any(v is not None for v in sides["edited"]):
            made.append(_figure(name, label, goal, sides))
    return made


def _new(question: Question, side: str) -> float | None:
    return getattr(question, f"{side}_new")


def _old(question: Question, side: str) -> float | None:
    return getattr(question, f"{side}_old")


def _greedy(question: Question, side: str) -> bool | None:
    return getattr(question, f"{side}_greedy")


def _said(question: Question, side: str) -> bool | None:
    wanted = question.old if question.kind.startswith("neighbour") else question.new
    text = {"base": question.said_before, "edited": question.said_after}.get(side)
    return says(text, wanted)


def _figure(name: str, label: str, goal: Any, sides: dict[str, list[Any]]) -> Figure:
    both = [
        (float(b), float(e))
        for b, e in zip(sides["base"], sides["edited"], strict=True)
        if b is not None and e is not None
    ]
    sham = [float(v) for v in sides["sham"] if v is not None]
    base = sum(b for b, _ in both) / len(both) if both else None
    edited = sum(e for _, e in both) / len(both) if both else None
    sham_mean = sum(sham) / len(sham) if sham else None
    change = edited - base if base is not None and edited is not None else None
    return Figure(
        name=name, label=label, goal=goal, n=len(both), base=base, edited=edited, sham=sham_mean,
        change=change, interval=bootstrap([e - b for b, e in both]),
        sham_change=sham_mean - base if sham_mean is not None and base is not None else None,
    )  # fmt: skip
