"""One side measured: the same questions to the base, the edited model and every control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from surgery.audit import facts as fact_metrics
from surgery.audit.cache import BaseCache
from surgery.audit.general import Passage, TextStates, passages, text_states
from surgery.audit.head import Head
from surgery.audit.report import FactRecord
from surgery.audit.score import AnswerScore
from surgery.audit.suite import Suite
from surgery.audit.tasks import Outcome, Task, read_task, run_tasks
from surgery.model import Model, chat, generate

ANSWER_TOKENS = 40


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


@dataclass
class Measured:
    """What one side gave."""

    states: TextStates
    head: Head
    tasks: dict[str, list[Outcome]] = field(default_factory=dict)
    facts: fact_metrics.Scores = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    cached_states: bool = False


def measure(
    model: Model,
    plan: Plan,
    name: str,
    tasks: bool | Sequence[str] = True,
    speak: bool = True,
    head: Head | None = None,
    nll: bool = True,
) -> Measured:
    """Everything of the plan on one model. tasks: all, none, or those of these names. nll: of the
    texts, for those who do not go on to `divergences`."""
    states = text_states(model, plan.texts, f"{name}: texts", nll=nll)
    found = Measured(states, head or Head.of(model))
    if plan.all_facts:
        found.facts = fact_metrics.score(model, plan.all_facts, f"{name}: facts")
    if tasks:
        # Controls are not asked to talk: that is slow, and no figure of theirs needs it.
        chosen = [t for t in plan.tasks if tasks is True or t.name in tasks]
        chosen = [t for t in chosen if speak or t.part.kind != "requests"]
        found.tasks = run_tasks(model, chosen, f"{name}: tasks")
    if speak:
        found.said = fact_metrics.speak(model, plan.speak, f"{name}: speaking")
        found.answers = converse(model, [prompt for _, prompt in plan.answers], name)
    return found


def measure_base(model: Model, plan: Plan, cache: BaseCache, head: Head) -> Measured:
    """The base's side, out of the cache where it has been measured before."""
    rows = [list(passage.ids) for passage in plan.texts]
    tensors, hit = cache.tensors(
        "texts", rows, lambda: text_states(model, plan.texts, "base: texts").tensors(), model.device
    )
    states = TextStates(tensors["hidden"], tensors["nll"].cpu(), tensors["norms"].cpu())
    found = Measured(states, head, cached_states=hit)
    asked = fact_metrics.pairs(plan.all_facts)
    scores = cache.json("facts", asked, lambda: _plain(model, plan.all_facts))
    found.facts = {pair: AnswerScore(*score) for pair, score in zip(asked, scores, strict=True)}
    # Task by task, so that a suite that adds one does not pay for the others again.
    for task in plan.tasks:
        key = [task.part.model_dump(), [[i.prompt, list(i.choices), i.gold] for i in task.items]]
        stored = cache.json(f"task-{task.name}", key, lambda task=task: _outcomes(model, task))
        found.tasks |= {name: [Outcome(*o) for o in outcomes] for name, outcomes in stored.items()}
    found.said = say_base(model, plan.speak, cache)
    prompts = [prompt for _, prompt in plan.answers]
    found.answers = cache.json("answers", prompts, lambda: converse(model, prompts, "base"))
    return found


def base_again(model: Model, plan: Plan, cache: BaseCache) -> TextStates:
    """The base's texts read afresh, after the cache proved to be of another machine."""
    rows = [list(passage.ids) for passage in plan.texts]
    cache.forget("texts", rows)
    tensors, _ = cache.tensors(
        "texts", rows, lambda: text_states(model, plan.texts, "base: texts").tensors(), model.device
    )
    return TextStates(tensors["hidden"], tensors["nll"], tensors["norms"])


def say_base(model: Model, prompts: Sequence[str], cache: BaseCache) -> dict[str, str]:
    """Ten greedy tokens of the base after each prompt, remembered one by one."""
    known = {p: cache.json("said", p, lambda: None) for p in prompts} if cache.use else {}
    missing = [p for p in dict.fromkeys(prompts) if known.get(p) is None]
    said = fact_metrics.speak(model, missing, "base: speaking")
    for prompt, text in said.items():
        cache.forget("said", prompt)
        cache.json("said", prompt, lambda text=text: text)
    return {**known, **said}


def converse(model: Model, prompts: Sequence[str], name: str) -> dict[str, str]:
    """Answers to prompts as a chat, greedy."""
    if not prompts:
        return {}
    framed = [chat(model, prompt) for prompt in prompts]
    said = generate(model, framed, ANSWER_TOKENS, label=f"{name}: answering")
    return {p: text.strip() for p, text in zip(prompts, said, strict=True)}


def _plain(model: Model, facts: list[FactRecord]) -> list[list[Any]]:
    scores = fact_metrics.score(model, facts, "base: facts") if facts else {}
    return [[s.mean_logprob, s.total, s.greedy, s.tokens] for s in scores.values()]


def _outcomes(model: Model, task: Task) -> dict[str, list[list[Any]]]:
    found = run_tasks(model, [task], f"base: {task.name}")
    return {name: [o.plain() for o in outcomes] for name, outcomes in found.items()}
