"""One side measured: the same questions to the base, the edited model and every control."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from surgery.audit import facts as fact_metrics
from surgery.audit.cache import SideCache
from surgery.audit.general import Passage, TextStates, passages, text_states
from surgery.audit.head import Head
from surgery.audit.report import FactRecord
from surgery.audit.score import AnswerScore
from surgery.audit.suite import Suite
from surgery.audit.tasks import Outcome, Task, read_task, run_tasks
from surgery.model import Model, Said, chat, say

# Facts that are asked about before what came of it is written down.
_FACTS_AT_ONCE = 16


@dataclass
class Plan:
    """Everything that will be asked. facts are filled in as the sides are measured."""

    suite: Suite
    texts: list[Passage]
    tasks: list[Task]
    facts: list[FactRecord] = field(default_factory=list)
    earlier: list[FactRecord] = field(default_factory=list)
    speak: list[str] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)  # (kind, prompt), asked as a chat

    @classmethod
    def of(cls, suite: Suite, model: Model) -> Plan:
        """Texts and tasks; the facts come later, because choosing them may need the base."""
        texts = [
            passage
            for part in suite.texts
            for passage in passages(model, part.kind, suite.texts_of(part), part.tokens)
        ]
        return cls(suite, texts, [read_task(suite, part) for part in suite.tasks])

    @property
    def all_facts(self) -> list[FactRecord]:
        return [*self.facts, *self.earlier]

    def chats(self) -> dict[int, list[str]]:
        """What is asked as a chat, by how long answers may be: those of one length are given together."""
        found = {self.suite.answer_tokens: [prompt for _, prompt in self.answers]}
        for task in self.tasks:
            if task.part.kind == "requests":
                found.setdefault(task.part.tokens, []).extend(item.prompt for item in task.items)
        return {tokens: prompts for tokens, prompts in found.items() if prompts}


@dataclass
class Measured:
    """What one side gave. said: ten tokens after prompts of facts; answers: to what is asked as a chat."""

    states: TextStates
    head: Head
    tasks: dict[str, list[Outcome]] = field(default_factory=dict)
    facts: fact_metrics.Scores = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Said] = field(default_factory=dict)
    cached_states: bool = False


def measure(
    model: Model,
    plan: Plan,
    name: str,
    store: SideCache,
    tasks: bool | Iterable[str] = True,
    speak: bool = True,
    head: Head | None = None,
) -> Measured:
    """Everything of the plan on the model as it is now, or what of it is in the store.

    tasks: all, none, or those of these names. speak: answer freely too; controls are not asked to, that
    is slow and no figure of theirs needs it. Every side comes through here, so that the same weights
    are asked in the same batches and give the same bits.
    """
    states, hit = _texts(model, plan, name, store)
    found = Measured(states, head or Head.of(model), cached_states=hit)
    found.facts = score_facts(model, plan.all_facts, store, f"{name}: facts")
    if speak:
        found.said = speak_after(model, plan.speak, store, f"{name}: speaking")
        for tokens, prompts in plan.chats().items():
            found.answers |= converse(model, prompts, tokens, store, f"{name}: answering")
    wanted = set(tasks) if not isinstance(tasks, bool) else None
    for task in plan.tasks:
        if tasks is False or (wanted is not None and task.name not in wanted):
            continue
        if not speak and task.part.kind == "requests":
            continue
        # Task by task, so that a suite that adds one does not pay for the others again.
        key = [
            task.part.model_dump(),
            [[i.prompt, list(i.choices), i.gold, i.ending] for i in task.items],
        ]

        def outcomes(task: Task = task) -> dict[str, list[Any]]:
            made = run_tasks(model, [task], f"{name}: {task.name}", found.answers)
            return {name: [o.plain() for o in outcomes] for name, outcomes in made.items()}

        stored = store.json(f"task-{task.name}", key, outcomes)
        found.tasks |= {name: [Outcome(*o) for o in outcomes] for name, outcomes in stored.items()}
    return found


def _texts(model: Model, plan: Plan, name: str, store: SideCache) -> tuple[TextStates, bool]:
    # The logits are made where sides are compared, so no NLL here.
    tensors, hit = store.tensors(
        "texts",
        [list(passage.ids) for passage in plan.texts],
        lambda: text_states(model, plan.texts, f"{name}: texts", nll=False).tensors(),
        model.device,
    )
    states = TextStates(tensors["hidden"], tensors["nll"].cpu(), tensors["norms"].cpu())
    return states, hit


def texts_again(model: Model, plan: Plan, store: SideCache) -> TextStates:
    """The base's texts read afresh, after the cache proved to be of another machine."""
    store.forget("texts", [list(passage.ids) for passage in plan.texts])
    return _texts(model, plan, "base", store)[0]


def score_facts(
    model: Model, records: Sequence[FactRecord], store: SideCache, label: str
) -> fact_metrics.Scores:
    """Scores of every (prompt, answer) that the questions need."""
    found: fact_metrics.Scores = {}
    for begin in range(0, len(records), _FACTS_AT_ONCE):
        some = records[begin : begin + _FACTS_AT_ONCE]
        asked = fact_metrics.pairs(some)

        def scored(some: Sequence[FactRecord] = some) -> list[list[Any]]:
            scores = fact_metrics.score(model, some, label)
            return [[s.mean_logprob, s.total, s.greedy, s.tokens] for s in scores.values()]

        plain = store.json("facts", asked, scored)
        found |= {pair: AnswerScore(*score) for pair, score in zip(asked, plain, strict=True)}
    return found


def speak_after(
    model: Model, prompts: Sequence[str], store: SideCache, label: str = "base: speaking"
) -> dict[str, str]:
    """Ten greedy tokens after each prompt, remembered one by one."""

    def said(some: list[str]) -> list[str]:
        return list(fact_metrics.speak(model, some, label).values())

    return store.one_by_one("said", prompts, said)


def converse(
    model: Model, prompts: Sequence[str], tokens: int, store: SideCache, label: str
) -> dict[str, Said]:
    """Answers to prompts asked as a chat, greedy."""

    def said(some: list[str]) -> list[list[Any]]:
        found = say(model, [chat(model, prompt) for prompt in some], tokens, label=label)
        return [[one.text.strip(), one.ended] for one in found]

    found = store.one_by_one("answer", prompts, said, again=tokens)
    return {prompt: Said(*answer) for prompt, answer in found.items()}
