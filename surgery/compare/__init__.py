"""Several checkpoints side by side: their answers, a debate, a cross-check of statements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.compare.arguing import RULES, Debate, Turn, debate
    from surgery.compare.asking import Answers, answers
    from surgery.compare.checking import Crosscheck, Statement, crosscheck
    from surgery.compare.dialogue import framed
    from surgery.compare.likelihood import TokenScores, token_log_probs
    from surgery.compare.sides import Pool, Side
    from surgery.compare.words import agreement, same_words, word_diff

_HOMES = {
    "Answers": "asking",
    "Crosscheck": "checking",
    "Debate": "arguing",
    "Pool": "sides",
    "RULES": "arguing",
    "Side": "sides",
    "Statement": "checking",
    "TokenScores": "likelihood",
    "Turn": "arguing",
    "agreement": "words",
    "answers": "asking",
    "crosscheck": "checking",
    "debate": "arguing",
    "framed": "dialogue",
    "same_words": "words",
    "token_log_probs": "likelihood",
    "word_diff": "words",
}
__all__ = [
    "RULES",
    "Answers",
    "Crosscheck",
    "Debate",
    "Pool",
    "Side",
    "Statement",
    "TokenScores",
    "Turn",
    "agreement",
    "answers",
    "crosscheck",
    "debate",
    "framed",
    "same_words",
    "token_log_probs",
    "word_diff",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"surgery.compare.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'surgery.compare' has no attribute {name!r}")
