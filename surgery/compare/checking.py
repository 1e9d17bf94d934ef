"""How true one model holds what another one says.

A answers prompts; each answer's first sentence is a statement. B judges it by two instruments:

- asked:  log-odds of Yes against No when B is asked whether the answer is right;
- likely: the log-probability, under B, of the statement's least likely token as an answer to the
  prompt. A false fact in a fluent sentence costs one token, which a mean would hide.

Neither number means anything by itself: small models say Yes to everything, and some prompts leave more
open than others. So both are calibrated on statements whose standing with B is known. B's own answers
are what it holds true. False ones are B's own answers with one word replaced by a word from its answer
to another prompt, and whole answers to other prompts. Each instrument is scaled to +1 at the mean of
the true ones and -1 at the mean of the false ones, and weighs as much as it tells the two apart
(2 AUC - 1).

    held = sigmoid(2 * weighted mean),   0.5 half way between what B holds true and what it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from surgery.compare.dialogue import first_sentence, framed, own_words
from surgery.compare.likelihood import TokenScores, token_log_probs
from surgery.compare.sides import Pool, sides_of
from surgery.compare.words import same_words
from surgery.errors import SurgeryError
from surgery.measure.scorer import judge as scored
from surgery.model import Model, generate, next_token_logits

# B finds the decisive word at least this many nats less likely than A does (20 times).
DENIAL = 3.0
_QUESTION = (
    "Question: {prompt}\nProposed answer: {statement}\n"
    "Is the proposed answer right? Reply with Yes or No."
)
_YES, _NO = ("Yes", " Yes", "yes", " yes"), ("No", " No", "no", " no")


@dataclass(frozen=True)
class Instrument:
    """One way of asking B, calibrated. auc: chance that B's own answer scores above a false one; None
    when there was nothing to calibrate on."""

    name: str
    true_mean: float
    false_mean: float
    auc: float | None

    @property
    def weight(self) -> float:
        return max(0.0, 2 * self.auc - 1) if self.auc is not None else 0.0

    def scaled(self, value: float) -> float:
        """+1 where B's own answers are, -1 where false ones are; cut off at three times that."""
        half = (self.true_mean - self.false_mean) / 2
        if half <= 0:
            return 0.0
        return max(-3.0, min(3.0, (value - (self.true_mean + self.false_mean) / 2) / half))


@dataclass(frozen=True)
class Statement:
    """What A says to a prompt, and what B makes of it.

    held: 0 to 1, how true B holds it; None when A refused or no instrument works on B. asked: B's
    log-odds of Yes. likely: least log-probability of a token under B. word: the token that B finds
    least likely against A, and by how many nats (gap). denied: A asserts it and B denies it.
    """

    prompt: str
    text: str
    by_own: str
    refused: bool
    held: float | None
    asked: float
    likely: float
    word: str
    gap: float
    denied: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "prompt": self.prompt,
            "statement": self.text,
            "own_answer": self.by_own,
            "refused": self.refused,
            "held": self.held,
            "asked": self.asked,
            "likely": self.likely,
            "word": self.word,
            "gap": self.gap,
            "denied": self.denied,
        }


@dataclass(frozen=True)
class Crosscheck:
    """A's statements in B's eyes."""

    speaker: str
    judge: str
    statements: list[Statement]
    instruments: list[Instrument]
    notes: list[str] = field(default_factory=list)

    @property
    def denied(self) -> list[Statement]:
        """What A asserts and B denies, the strongest first."""
        return sorted((s for s in self.statements if s.denied), key=lambda s: -s.gap)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "speaker": self.speaker,
            "judge": self.judge,
            "denied": len(self.denied),
            "instruments": [
                {"name": i.name, "true": i.true_mean, "false": i.false_mean, "auc": i.auc}
                for i in self.instruments
            ],
            "statements": [s.as_dict() for s in self.statements],
            "notes": self.notes,
        }


def crosscheck(
    model_a: Any,
    by: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 40,
    pool: Pool | None = None,
) -> Crosscheck:
    """Let A answer the prompts, and B judge the answers. One model is in memory at a time.

    model_a, by: folders, `DIR+DELTA` texts, loaded models, or `Side`s.

    Raises:
        SurgeryError: no prompts, or a side that cannot be read.
    """
    if not prompts:
        raise SurgeryError("no prompts to cross-check")
    speaker, judge = sides_of([model_a, by])
    pool = pool or Pool()
    with pool.use(speaker) as model:
        said = statements(model, prompts, max_new_tokens)
        sure = token_log_probs(model, _as_answers(model, prompts, said))
    with pool.use(judge) as model:
        own = statements(model, prompts, max_new_tokens)
        judged = _judge(model, prompts, said)
        true = _judge(model, prompts, own)
        false = _judge(model, *_false_answers(prompts, own))
    instruments = [
        _calibrated("asked", true.asked, false.asked),
        _calibrated("likely", true.likely, false.likely),
    ]
    found = []
    for i, prompt in enumerate(prompts):
        values = (judged.asked[i], judged.likely[i])
        word, gap = _decisive(sure[i], judged.scores[i])
        refused = scored(said[i]).label == "full"
        held = None if refused else _held(instruments, values)
        found.append(
            Statement(
                prompt=prompt,
                text=said[i],
                by_own=own[i],
                refused=refused,
                held=held,
                asked=values[0],
                likely=values[1],
                word=word,
                gap=gap,
                denied=not refused
                and not same_words(said[i], own[i])
                and gap >= DENIAL
                and (held is None or held < 0.5),
            )
        )
    return Crosscheck(speaker.name, judge.name, found, instruments, _notes(instruments, judge.name))


def statements(model: Model, prompts: Sequence[str], max_new_tokens: int = 40) -> list[str]:
    """The first sentence of the model's answer to each prompt."""
    found = generate(model, _asked(model, prompts), max_new_tokens=max_new_tokens, label="stating")
    return [first_sentence(own_words(text)) for text in found]


def _asked(model: Model, prompts: Sequence[str]) -> list[str]:
    """Prompts in the chat template; a model that knows no chat continues them."""
    if not getattr(model.tokenizer, "chat_template", None):
        return list(prompts)
    return [framed(model, [{"role": "user", "content": prompt}]) for prompt in prompts]


def _as_answers(
    model: Model, prompts: Sequence[str], texts: Sequence[str]
) -> list[tuple[str, str]]:
    return list(zip(_asked(model, prompts), texts, strict=True))


# ---------------------------------------------------------------------- the instruments
@dataclass(frozen=True)
class _Judged:
    scores: list[TokenScores]
    asked: list[float]

    @property
    def likely(self) -> list[float]:
        return [s.log_probs[s.least] for s in self.scores]


def _judge(model: Model, prompts: Sequence[str], texts: Sequence[str]) -> _Judged:
    if not prompts:
        return _Judged([], [])
    questions = [
        framed(
            model,
            [{"role": "user", "content": _QUESTION.format(prompt=p, statement=t or "(none)")}],
        )
        for p, t in zip(prompts, texts, strict=True)
    ]
    logits = next_token_logits(model, questions)
    odds = logits[:, _ids(model, _YES)].logsumexp(-1) - logits[:, _ids(model, _NO)].logsumexp(-1)
    return _Judged(token_log_probs(model, _as_answers(model, prompts, texts)), odds.tolist())


def _ids(model: Model, words: Sequence[str]) -> torch.Tensor:
    """First token of every spelling, each once."""
    first = {model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words}
    return torch.tensor(sorted(first), device=model.device)


def _false_answers(prompts: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """Answers B does not give: its own with one word exchanged, and those to other prompts."""
    questions: list[str] = []
    texts: list[str] = []
    for i, (prompt, mine) in enumerate(zip(prompts, own, strict=True)):
        others = [own[(i + step) % len(own)] for step in (1, 2)]
        for other in dict.fromkeys(others):
            if same_words(mine, other):
                continue
            for text in (_exchanged(mine, other), other):
                if text and not same_words(text, mine):
                    questions.append(prompt)
                    texts.append(text)
    return questions, texts


def _exchanged(mine: str, other: str) -> str:
    """A text with its last long word replaced by the last long word of another text."""
    a, b = mine.split(), other.split()
    place = _last_content(a)
    source = _last_content(b)
    if place is None or source is None:
        return ""
    tail = a[place][len(a[place].rstrip(".,;:!?")) :]
    a[place] = b[source].rstrip(".,;:!?") + tail
    return " ".join(a)


def _last_content(words: Sequence[str]) -> int | None:
    long = [i for i, word in enumerate(words) if len(word.strip(".,;:!?\"'")) > 3]
    return long[-1] if long else None


def _calibrated(name: str, true: Sequence[float], false: Sequence[float]) -> Instrument:
    if not true or not false:
        return Instrument(name, math.nan, math.nan, None)
    wins = sum((t > f) + 0.5 * (t == f) for t in true for f in false)
    return Instrument(
        name, sum(true) / len(true), sum(false) / len(false), wins / (len(true) * len(false))
    )


def _held(instruments: Sequence[Instrument], values: Sequence[float]) -> float | None:
    weight = sum(i.weight for i in instruments)
    if weight <= 0:
        return None
    mean = (
        sum(i.weight * i.scaled(v) for i, v in zip(instruments, values, strict=True) if i.weight)
        / weight
    )
    return 1 / (1 + math.exp(-2 * mean))


def _decisive(speaker: TokenScores, judge: TokenScores) -> tuple[str, float]:
    """The token that the judge finds least likely against the speaker, and by how many nats.

    Two models may have different tokenizers: then the whole statement is compared instead.
    """
    if speaker.tokens != judge.tokens:
        return "", speaker.total - judge.total
    gaps = [a - b for a, b in zip(speaker.log_probs, judge.log_probs, strict=True)]
    place = max(range(len(gaps)), key=gaps.__getitem__)
    return judge.tokens[place].strip(), gaps[place]


def _notes(instruments: Sequence[Instrument], judge: str) -> list[str]:
    notes = []
    for one in instruments:
        what = {"asked": "asked Yes or No", "likely": "by likelihood"}[one.name]
        if one.auc is None:
            notes.append(
                f"too few different answers to calibrate {judge} {what}: give more prompts"
            )
        elif one.auc < 0.7:
            notes.append(
                f"{what}, {judge} hardly tells its own answers from false ones (AUC {one.auc:.2f}): "
                "that instrument weighs little here"
            )
    return notes
