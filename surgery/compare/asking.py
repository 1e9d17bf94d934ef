"""The same prompts to several checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surgery.compare.dialogue import framed, own_words
from surgery.compare.sides import Pool, by_base, sides_of
from surgery.compare.words import agreement, same_words, word_diff
from surgery.errors import SurgeryError
from surgery.measure.scorer import judge
from surgery.model import generate


@dataclass(frozen=True)
class AnswerRow:
    """One prompt and what every side says. agreement: mean share of words that pairs of answers have
    in common, 1.0 for a single side."""

    prompt: str
    answers: list[str]
    refused: list[bool]
    agreement: float

    @property
    def agree(self) -> bool:
        """Whether all sides say the same words."""
        return all(same_words(self.answers[0], other) for other in self.answers[1:])

    @property
    def refusals_differ(self) -> bool:
        """Whether some sides decline and others answer."""
        return len(set(self.refused)) > 1

    def diff(self, side: int, against: int = 0) -> list[tuple[str, Any]]:
        """Words of one side's answer against another's: see `surgery.compare.words.word_diff`."""
        return word_diff(self.answers[against], self.answers[side])


@dataclass(frozen=True)
class Answers:
    """sides: their names. rows: in the order of the prompts."""

    sides: list[str]
    rows: list[AnswerRow]

    @property
    def changed_first(self) -> list[AnswerRow]:
        """The rows with the largest differences on top."""
        return sorted(self.rows, key=lambda row: (not row.refusals_differ, row.agreement))

    @property
    def refusals(self) -> list[int]:
        """How many prompts each side declines."""
        return [sum(row.refused[i] for row in self.rows) for i in range(len(self.sides))]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "sides": self.sides,
            "agree": sum(row.agree for row in self.rows),
            "prompts": len(self.rows),
            "refusals": dict(zip(self.sides, self.refusals, strict=True)),
            "rows": [
                {
                    "prompt": row.prompt,
                    "answers": dict(zip(self.sides, row.answers, strict=True)),
                    "refused": dict(zip(self.sides, row.refused, strict=True)),
                    "agreement": row.agreement,
                    "agree": row.agree,
                    "diff": [row.diff(i) for i in range(1, len(self.sides))],
                }
                for row in self.rows
            ],
        }


def answers(
    models: Sequence[Any],
    prompts: Sequence[str],
    max_new_tokens: int = 60,
    chat: bool = True,
    system: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    pool: Pool | None = None,
) -> Answers:
    """Ask every model the same things; one model is in memory at a time.

    models: folders, `DIR+DELTA` texts, loaded models, or `Side`s. chat: in the chat template, for
    models that have one; else prompts are continued as they are.

    Raises:
        SurgeryError: no prompts, or a side that cannot be read.
    """
    if not prompts:
        raise SurgeryError("no prompts to answer")
    sides = sides_of(models)
    pool = pool or Pool()
    said: dict[int, list[str]] = {}
    for index in by_base(sides):
        with pool.use(sides[index]) as model:
            has_chat = chat and bool(getattr(model.tokenizer, "chat_template", None))
            asked = [framed(model, _messages(p, system)) for p in prompts] if has_chat else prompts
            found = generate(
                model,
                asked,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                label=f"{sides[index].name} answers",
            )
            said[index] = [own_words(text) for text in found]
    rows = []
    for number, prompt in enumerate(prompts):
        texts = [said[i][number] for i in range(len(sides))]
        rows.append(AnswerRow(prompt, texts, [judge(t).refused for t in texts], _agreement(texts)))
    return Answers([side.name for side in sides], rows)


def _messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": system}] if system is not None else []
    return [*turns, {"role": "user", "content": prompt}]


def _agreement(texts: Sequence[str]) -> float:
    pairs = [agreement(a, b) for i, a in enumerate(texts) for b in texts[i + 1 :]]
    return sum(pairs) / len(pairs) if pairs else 1.0
