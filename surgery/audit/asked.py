"""Everything a plan asks, item by item and by id: items of tasks, facts of the edits, their neighbours.

The id of a task's item is the one of reports (`choice/3`; `facts_greedy/3` for what is said freely), that
of a fact is its edit's place in the stack and its own (`edit-2/fact-1`), a neighbour's has its prompt
behind that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from surgery.audit import facts as fact_metrics
from surgery.audit.cache import SideCache
from surgery.audit.measure import Plan, speak_after
from surgery.audit.neighbours import mentions, plain
from surgery.audit.report import FactRecord
from surgery.audit.suite import Suite
from surgery.audit.tasks import Outcome, Task, run_tasks
from surgery.delta import Delta
from surgery.errors import SurgeryError
from surgery.model import Model, generate, tokenize

Ask = Callable[[Model], Outcome]


@dataclass(frozen=True)
class Asked:
    """One item. since: with how many edits it is to hold at first; 0 for what the base is asked about.
    item: the id in its task, which greedy answers share with preferred ones."""

    id: str
    text: str
    gold: str
    since: int = 0
    item: str = ""


def expected(item: Asked, before: Outcome) -> bool:
    """Whether it should be right with all edits: as the base has it, and an edit's own fact anyway."""
    return item.since > 0 or before.right


def ask_facts(
    plan: Plan, model: Model, deltas: Sequence[Delta], store: SideCache
) -> dict[str, int]:
    """Put the facts of every edit and their neighbours into the plan; returns ids of facts (each in
    its record's `edit`) with the place of their edit."""
    owners: dict[str, int] = {}
    part = plan.suite.edit
    for place, delta in enumerate(deltas, start=1):
        made = fact_metrics.records(
            fact_metrics.facts_of_delta(delta)[: part.facts],
            lambda prompts: speak_after(model, prompts, store),
            part.neighbours,
            plus=False,
        )
        for number, record in enumerate(made, start=1):
            record.edit = f"edit-{place}/fact-{number}"
            record.questions = [q for q in record.questions if q.kind != "paraphrase"]
            owners[record.edit] = place
            plan.facts.append(record)
    return owners


def declared(tasks: Sequence[Task], facts: Sequence[FactRecord]) -> set[str]:
    """Ids of the items whose right answer an edit sets out to change: losing those is no damage.

    An item is one if it names the subject, and the old answer is the right one.
    """
    changed = [(plain(f.subject), plain(f.old)) for f in facts if f.old and not f.earlier]
    found = set()
    for task in tasks:
        for item in task.items:
            if item.choices:
                text, gold = plain(item.text), plain(item.choices[item.gold])
                if any(old == gold and mentions(text, subject) for subject, old in changed):
                    found.add(item.id)
    return found


def _fact_ids(record: FactRecord) -> list[str]:
    """An id a question: the fact's own, or the fact's and the neighbour's prompt."""
    return [
        str(record.edit) if q.kind == "direct" else f"{record.edit}/{q.prompt}"
        for q in record.questions
    ]


def _task_id(task: Task, item_id: str, name: str) -> str:
    return item_id if name == task.name else name + item_id.removeprefix(task.name)


def items_of(plan: Plan, owners: Mapping[str, int]) -> dict[str, Asked]:
    """Everything the plan asks, by id."""
    found: dict[str, Asked] = {}
    for task in plan.tasks:
        for name in (task.name, f"{task.name}_greedy"):
            if name == task.name or task.part.kind == "facts":
                for item in task.items:
                    gold = item.choices[item.gold] if item.choices else ""
                    label = _task_id(task, item.id, name)
                    found[label] = Asked(label, item.text, gold, item=item.id)
    for record in plan.facts:
        for question, label in zip(record.questions, _fact_ids(record), strict=True):
            direct = question.kind == "direct"
            gold = question.new if direct else question.old or ""
            since = owners[str(record.edit)] if direct else 0
            found[label] = Asked(label, question.prompt, gold, since)
    return found


def answers(
    plan: Plan, tasks: Mapping[str, Sequence[Outcome]], facts: fact_metrics.Scores
) -> dict[str, Outcome]:
    """What a side answered, by id."""
    found: dict[str, Outcome] = {}
    for task in plan.tasks:
        for name in (task.name, f"{task.name}_greedy"):
            for item, outcome in zip(task.items, tasks.get(name, ()), strict=False):
                found[_task_id(task, item.id, name)] = outcome
    for record in plan.facts:
        for question, label in zip(record.questions, _fact_ids(record), strict=True):
            new = facts[question.prompt, question.new]
            if not question.old:
                found[label] = Outcome(new.greedy, question.new if new.greedy else "")
                continue
            old = facts[question.prompt, question.old]
            changed = new.mean_logprob > old.mean_logprob
            direct = question.kind == "direct"
            # Written so that NaN is wrong either way.
            kept = old.mean_logprob > new.mean_logprob
            right = changed if direct else kept
            found[label] = Outcome(right, question.new if changed else question.old)
    return found


def only(plan: Plan, wanted: set[str]) -> Plan:
    """The same texts, and of the items only some."""
    tasks = []
    for task in plan.tasks:
        names = (task.name, f"{task.name}_greedy")
        kept = [i for i in task.items if any(_task_id(task, i.id, n) in wanted for n in names)]
        if kept:
            tasks.append(replace(task, items=kept))
    facts = []
    for record in plan.facts:
        asked = zip(record.questions, _fact_ids(record), strict=True)
        questions = [q for q, label in asked if label in wanted]
        if questions:
            facts.append(record.model_copy(update={"questions": questions}))
    return Plan(plan.suite, plan.texts, tasks, facts)


def find(
    model: Model, given: str, deltas: Sequence[Delta], suite: Suite, answer: str | None
) -> tuple[Asked, Ask]:
    """The one item that an id, a part of a text, or a prompt stands for, and how to put it to a model.

    The model is the base now. A task item or a fact is asked as the suite asks it; a prompt of
    somebody's own is right when what greedy decoding gives begins with `answer`, by default with what
    the base says.
    """
    if answer is not None:
        return _own(given, answer)
    store = SideCache(model)
    plan = Plan.of(suite, model)
    items = items_of(plan, ask_facts(plan, model, deltas, store))
    word = given.strip().casefold()
    exact = [i for i in items if i == given or items[i].text.strip().casefold() == word]
    hits = exact or [i for i in items if word in items[i].text.casefold()]
    if len(hits) > 1 and given not in hits:
        some = "; ".join(f"{i}: {short(items[i].text)}" for i in hits[:4])
        raise SurgeryError(f"{len(hits)} items have {given!r} in their text, give an id: {some}")
    if hits:
        label = given if given in hits else hits[0]
        less = only(plan, {label})
        less.texts = []
        return items[label], lambda edited: _asked(edited, less, label)
    if "/" in given and " " not in given:
        raise SurgeryError(f"no item {given!r} in the suite {suite.name} or the edits' facts")
    said = fact_metrics.first_words(speak_after(model, [given], store)[given])
    if not said:
        raise SurgeryError(f"the base says nothing after {given!r}: give the answer to look for")
    return _own(given, said)


def _own(prompt: str, answer: str) -> tuple[Asked, Ask]:
    def ask(model: Model) -> Outcome:
        long = len(tokenize(model, answer, special=False)) + 2
        (text,) = generate(model, [prompt], max(fact_metrics.GENERATED, long), label="asking")
        # What is said first, not the tokens it is made of: those depend on what stands before.
        right = text.strip().casefold().startswith(answer.strip().casefold())
        return Outcome(right, fact_metrics.first_words(text))

    return Asked("your prompt", prompt, answer), ask


def _asked(model: Model, plan: Plan, label: str) -> Outcome:
    tasks = run_tasks(model, plan.tasks, "asking")
    facts = fact_metrics.score(model, plan.facts, "asking") if plan.facts else {}
    return answers(plan, tasks, facts)[label]


def short(text: str, most: int = 60) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
