"""All tasks of a suite on one model: one batch of scores for everything that is scored, one of answers
for everything that is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.audit.score import AnswerScore, pair_ids, score_ids
from surgery.audit.tasks.items import Item, Task
from surgery.measure.scorer import judge
from surgery.model import Model, Said, chat, say


@dataclass(frozen=True)
class Outcome:
    """Right or wrong, and what the model preferred or said."""

    right: bool
    answer: str

    def plain(self) -> list[Any]:
        return [self.right, self.answer]


def run_tasks(
    model: Model,
    tasks: Sequence[Task],
    label: str = "tasks",
    answers: Mapping[str, Said] | None = None,
) -> dict[str, list[Outcome]]:
    """Outcomes by task name, in the order of the items. A facts task gives a second one, `<name>_greedy`:
    whether the answer is what greedy decoding says.

    answers: what the model said to prompts asked as a chat, where that is known; other requests are
    put to it now.
    """
    asked: list[tuple[list[int], list[int]]] = []
    spans: dict[tuple[str, int], slice] = {}
    for task in tasks:
        for number, item in enumerate(task.items):
            if item.choices and task.part.kind != "harness":
                spans[task.name, number] = slice(len(asked), len(asked) + len(item.choices))
                asked += [
                    pair_ids(model, before, scored, item.join) for before, scored in item.pairs
                ]
    scores = score_ids(model, asked, label=label)
    found: dict[str, list[Outcome]] = {}
    for task in tasks:
        if task.part.kind == "requests":
            found[task.name] = _answered(model, task, answers or {})
            continue
        if task.part.kind == "harness":
            from surgery.audit.tasks.harness import run_harness

            found[task.name] = [Outcome(*answer) for answer in run_harness(model, task)]
            continue
        mine = [scores[spans[task.name, number]] for number in range(len(task.items))]
        if task.part.kind in ("facts", "cloze"):
            greedy = [
                Outcome(s[i.gold].greedy, i.choices[i.gold] if s[i.gold].greedy else "")
                for i, s in zip(task.items, mine, strict=True)
            ]
            found[task.name if task.part.kind == "cloze" else f"{task.name}_greedy"] = greedy
        if task.part.kind != "cloze":
            found[task.name] = [
                _preferred(task, i, s) for i, s in zip(task.items, mine, strict=True)
            ]
    return found


def _preferred(task: Task, item: Item, scores: Sequence[AnswerScore]) -> Outcome:
    """The likeliest choice: by mean token log-probability for facts, by the sum otherwise, or as the
    suite says."""
    values = [_value(task, choice, s) for choice, s in zip(item.choices, scores, strict=True)]
    best = max(range(len(values)), key=lambda i: (values[i] == values[i], values[i]))
    return Outcome(best == item.gold, item.choices[best])


def _value(task: Task, choice: str, score: AnswerScore) -> float:
    if task.part.normalize == "characters":
        return score.total / max(1, len(choice))
    if task.part.normalize == "tokens" or task.part.kind == "facts":
        return score.mean_logprob
    return score.total


def _answered(model: Model, task: Task, known: Mapping[str, Said]) -> list[Outcome]:
    """Right is an answer that neither declines nor falls apart."""
    missing = [item.prompt for item in task.items if item.prompt not in known]
    prompts = [chat(model, prompt) for prompt in missing]
    new = say(model, prompts, task.part.tokens, label=f"answering {task.name}")
    said = {**known, **dict(zip(missing, new, strict=True))}
    found = []
    for item in task.items:
        text = said[item.prompt].text
        judged = judge(text)
        right = not judged.refused and not judged.incoherent
        found.append(Outcome(right, " ".join(text.split())))
    return found
