"""Two checkpoints argue a question under a rule: who gives way, and when.

A side's position is the first sentence of its answer to the bare question. It is held for as long as
the side, with everything said so far before it, still finds its own first answer likelier than the
other's. That is measured by asking the question once more after every turn and scoring both answers,

    held = p(own) / (p(own) + p(other)),    p = exp(mean token log-probability),

over the tokens from where the two answers part. What a side says it thinks plays no part, so polite
phrases ("you are right, but") do not count. Both answers stand in the conversation, so a model that
merely repeats what it has read is not drawn to either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from surgery.compare.dialogue import Message, first_sentence, framed, own_words
from surgery.compare.likelihood import TokenScores, token_log_probs
from surgery.compare.sides import Pool, Side, sides_of
from surgery.compare.words import same_words
from surgery.errors import SurgeryError
from surgery.model import Model, generate
from surgery.progress import track

Rule = Literal["must_agree", "must_not", "stay_truthful"]
RULES: dict[str, str] = {
    "must_agree": (
        "You discuss a question with somebody who may see it differently. In the end you both must "
        "give the same answer. Answer in one or two short sentences."
    ),
    "must_not": (
        "You discuss a question with somebody who sees it differently. Defend your answer, and never "
        "agree with the other one. Answer in one or two short sentences."
    ),
    "stay_truthful": (
        "You discuss a question with somebody who may see it differently. Say only what is true, and "
        "change your answer only if it is wrong. Answer in one or two short sentences."
    ),
}
_ASK_AGAIN = "So, once more: {}"
_HEARD = "The other one says: {}\nWhat do you say?"


@dataclass(frozen=True)
class Turn:
    """One thing said, and where both sides stand after it.

    speaker: 0 or 1. held: of each side, the share of probability its own first answer has against the
    other's, 0 to 1; above 0.5 the side still holds its position. margins: the same in nats a token.
    """

    number: int
    speaker: int
    text: str
    held: tuple[float, float]
    margins: tuple[float, float]


@dataclass(frozen=True)
class Debate:
    """A debate. held: before anything was said. gave_way: the turn at which each side gave up its
    position for good, or None."""

    question: str
    rule: str
    sides: tuple[str, str]
    positions: tuple[str, str]
    held: tuple[float, float]
    turns: list[Turn]
    gave_way: tuple[int | None, int | None]
    notes: list[str] = field(default_factory=list)

    @property
    def disagree(self) -> bool:
        """Whether the sides answer the question differently at all."""
        return not same_words(*self.positions)

    @property
    def outcome(self) -> str:
        """Who gave way and when, in a sentence."""
        one, other = self.sides
        if not self.disagree:
            return f"Both answer “{self.positions[0]}”: there is nothing to give up."
        first, second = self.gave_way
        if first is None and second is None:
            return f"Nobody gave way in {len(self.turns)} turns."
        if first is not None and second is not None:
            return f"Both gave way: {one} at turn {first}, {other} at turn {second}."
        if first is not None:
            return f"{one} gave way at turn {first}; {other} held."
        return f"{other} gave way at turn {second}; {one} held."

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        named = dict(zip(("a", "b"), self.sides, strict=True))
        return {
            "question": self.question,
            "rule": self.rule,
            "sides": named,
            "positions": dict(zip(("a", "b"), self.positions, strict=True)),
            "held_before": dict(zip(("a", "b"), self.held, strict=True)),
            "turns": [
                {
                    "turn": turn.number,
                    "speaker": "ab"[turn.speaker],
                    "text": turn.text,
                    "held": dict(zip(("a", "b"), turn.held, strict=True)),
                    "margins": dict(zip(("a", "b"), turn.margins, strict=True)),
                }
                for turn in self.turns
            ],
            "gave_way": dict(zip(("a", "b"), self.gave_way, strict=True)),
            "disagree": self.disagree,
            "outcome": self.outcome,
            "notes": self.notes,
        }


def debate(
    model_a: Any,
    model_b: Any,
    question: str,
    rule: str = "stay_truthful",
    turns: int = 6,
    seed: int = 0,
    temperature: float = 0.0,
    max_new_tokens: int = 60,
    positions: tuple[str, str] | None = None,
    pool: Pool | None = None,
) -> Debate:
    """Let two sides argue; A speaks first.

    model_a, model_b: folders, `DIR+DELTA` texts, loaded models, or `Side`s. rule: one of RULES.
    positions: the answers to defend, if not those the sides give by themselves. The same seed gives
    the same debate.

    Raises:
        SurgeryError: an unknown rule, no question, no turns, or a side that cannot be read.
    """
    if rule not in RULES:
        raise SurgeryError(f"no rule {rule!r}: there are {', '.join(RULES)}")
    if not question.strip() or turns < 1:
        raise SurgeryError("a debate needs a question and at least one turn")
    sides = sides_of([model_a, model_b])
    stage = _Stage(pool or Pool(capacity=2), sides, question.strip(), RULES[rule])
    firsts = positions or (stage.position(0), stage.position(1))
    stage.positions = tuple(text.strip() for text in firsts)  # type: ignore[assignment]
    if not all(stage.positions):
        raise SurgeryError("a side has no answer to this question: give positions to defend")

    before = stage.margins()
    record: list[Turn] = []
    for number in track(range(1, turns + 1), "debating", total=turns):
        speaker = (number - 1) % 2
        text = stage.speak(speaker, max_new_tokens, temperature, seed + number)
        margins = stage.margins()
        record.append(Turn(number, speaker, text, _shares(margins), margins))
    notes = [
        f"{sides[i].name} finds the other's answer likelier before anything is said, so it has no "
        "position to give up"
        for i in (0, 1)
        if before[i] < 0
    ]
    return Debate(
        question=stage.question,
        rule=rule,
        sides=(sides[0].name, sides[1].name),
        positions=stage.positions,
        held=_shares(before),
        turns=record,
        gave_way=(_gave_way(record, before, 0), _gave_way(record, before, 1)),
        notes=notes,
    )


@dataclass
class _Stage:
    """The question, the rule, and what has been said so far."""

    pool: Pool
    sides: Sequence[Side]
    question: str
    rule: str
    positions: tuple[str, str] = ("", "")
    said: list[tuple[int, str]] = field(default_factory=list)

    def position(self, side: int) -> str:
        """What a side answers when nobody argues, in a sentence."""
        with self.pool.use(self.sides[side]) as model:
            prompt = framed(model, [{"role": "user", "content": self.question}])
            (answer,) = generate(model, [prompt], max_new_tokens=40, label="taking a position")
        return first_sentence(own_words(answer), words=25)

    def conversation(self, side: int) -> list[Message]:
        """All that was said, as this side sees it: its own words are the assistant's."""
        found = [
            {"role": "system", "content": self.rule},
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": self.positions[side]},
        ]
        # Each side has heard the other's first answer before it speaks.
        heard = [self.positions[1 - side]]
        for speaker, text in self.said:
            if speaker == side:
                found.append({"role": "user", "content": _HEARD.format(" ".join(heard))})
                found.append({"role": "assistant", "content": text})
                heard = []
            else:
                heard.append(text)
        if heard:
            found.append({"role": "user", "content": _HEARD.format(" ".join(heard))})
        return found

    def speak(self, side: int, max_new_tokens: int, temperature: float, seed: int) -> str:
        with self.pool.use(self.sides[side]) as model:
            (text,) = generate(
                model,
                [framed(model, self.conversation(side))],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                label="speaking",
            )
        text = _whole_sentences(own_words(text)) or "…"
        self.said.append((side, text))
        return text

    def margins(self) -> tuple[float, float]:
        """Of each side: how much likelier its own first answer is to it than the other's, nats a token."""
        found = []
        for side in (0, 1):
            with self.pool.use(self.sides[side]) as model:
                found.append(self._margin(model, side))
        return found[0], found[1]

    def _margin(self, model: Model, side: int) -> float:
        if same_words(*self.positions):
            return 0.0
        again = {"role": "user", "content": _ASK_AGAIN.format(self.question)}
        if self.said:
            talk = self.conversation(side)
            if talk[-1]["role"] == "user":
                # The last word was the other's: asking again belongs to the same turn.
                talk[-1] = {
                    "role": "user",
                    "content": talk[-1]["content"].rsplit("\n", 1)[0] + f"\n{again['content']}",
                }
            else:
                talk.append(again)
        else:
            talk = [{"role": "user", "content": self.question}]
        prompt = framed(model, talk)
        own, other = token_log_probs(
            model, [(prompt, self.positions[side]), (prompt, self.positions[1 - side])]
        )
        return contrast(own, other)


def contrast(own: TokenScores, other: TokenScores) -> float:
    """Mean log-probability of one answer less that of the other, over the tokens from where they part."""
    shared = 0
    for a, b in zip(own.tokens, other.tokens, strict=False):
        if a != b:
            break
        shared += 1
    # One answer may be the beginning of the other: then the last shared token speaks for it.
    start = min(shared, len(own.tokens) - 1, len(other.tokens) - 1)
    return _mean(own.log_probs[start:]) - _mean(other.log_probs[start:])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _shares(margins: tuple[float, float]) -> tuple[float, float]:
    return _sigmoid(margins[0]), _sigmoid(margins[1])


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _gave_way(turns: Sequence[Turn], before: tuple[float, float], side: int) -> int | None:
    """The turn from which a side that held its position no longer did, to the end."""
    if before[side] <= 0 or not turns or turns[-1].margins[side] >= 0:
        return None
    since = None
    for turn in reversed(turns):
        if turn.margins[side] >= 0:
            break
        since = turn.number
    return since


def _whole_sentences(text: str) -> str:
    """A text cut off by the token limit, without its unfinished last sentence."""
    text = " ".join(text.split())
    ends = [text.rfind(mark) for mark in (". ", "! ", "? ")]
    if text[-1:] in ".!?\"'”)" or max(ends) < 0:
        return text
    return text[: max(ends) + 1]
