"""How the model talks: loops, loss of variety, answers that never end, and text that the base would
find absurd.

surprise is the base's mean NLL (nats a token) of what a model answered. The base is at home in its own
answers; word salad is as far from it as chance. Unlike a repetition count it sees every way of falling
apart. Only answers that have nothing to do with the edit go in, or the edit itself would count.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from surgery.audit.report import Figure
from surgery.audit.score import pair_ids, score_ids
from surgery.measure.paired import bootstrap
from surgery.model import Model, Said, chat


def repetition(text: str, size: int = 3) -> float:
    """Share of the runs of `size` words that occurred before in the text."""
    words = _words(text)
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def entropy(texts: Sequence[str]) -> float:
    """Entropy of the words over all texts, in bits."""
    counts = Counter(word for text in texts for word in _words(text))
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values()) if total else 0.0


def surprise(base: Model, answers: Mapping[str, str]) -> dict[str, float]:
    """Mean NLL under the base of every answer to a prompt asked as a chat; empty ones are left out."""
    spoken = {prompt: text for prompt, text in answers.items() if text.strip()}
    pairs = [pair_ids(base, chat(base, p), text, join=False) for p, text in spoken.items()]
    scores = score_ids(base, pairs, label="reading answers")
    return {prompt: -s.mean_logprob for prompt, s in zip(spoken, scores, strict=True)}


def free_text_figures(
    before: Mapping[str, Said],
    after: Mapping[str, Said],
    surprise_before: Mapping[str, float],
    surprise_after: Mapping[str, float],
) -> list[Figure]:
    """Figures on the answers to the same prompts before and after."""
    prompts = [prompt for prompt in before if prompt in after]
    if not prompts:
        return []
    old_text = {prompt: before[prompt].text for prompt in prompts}
    new_text = {prompt: after[prompt].text for prompt in prompts}
    both = [p for p in prompts if p in surprise_before and p in surprise_after]
    rows = [
        (
            "surprise",
            "surprise of the base at free answers",
            "nats",
            [surprise_before[p] for p in both],
            [surprise_after[p] for p in both],
        ),
        (
            "repetition",
            "repetition in free answers",
            "",
            [repetition(old_text[p]) for p in prompts],
            [repetition(new_text[p]) for p in prompts],
        ),
        (
            "truncated",
            "answers cut off at the length limit",
            "",
            [float(not before[p].ended) for p in prompts],
            [float(not after[p].ended) for p in prompts],
        ),
    ]
    found = [
        Figure(
            name=name, label=label, unit=unit, goal="same", n=len(old),
            base=sum(old) / len(old), edited=sum(new) / len(new),
            change=(sum(new) - sum(old)) / len(old),
            interval=bootstrap([b - a for a, b in zip(old, new, strict=True)]),
        )
        for name, label, unit, old, new in rows
        if old
    ]  # fmt: skip
    one, two = entropy(list(old_text.values())), entropy(list(new_text.values()))
    found.append(
        Figure(
            name="entropy", label="variety of words in free answers", unit="bits", goal="same",
            n=len(prompts), base=one, edited=two, change=two - one,
        )
    )  # fmt: skip
    silent = [float(not text.strip()) for text in new_text.values()]
    quiet = [float(not text.strip()) for text in old_text.values()]
    if any(silent) or any(quiet):
        was, now = sum(quiet) / len(quiet), sum(silent) / len(silent)
        found.append(
            Figure(
                name="silence", label="empty answers", goal="same", n=len(prompts),
                base=was, edited=now, change=now - was,
            )
        )  # fmt: skip
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
