"""Texts compared word by word."""

from __future__ import annotations

import difflib
import re
from typing import Literal

Op = Literal["same", "removed", "added"]
_WORD = re.compile(r"\w+|[^\w\s]")


def word_diff(before: str, after: str) -> list[tuple[str, Op]]:
    """Pieces of both texts in reading order; the "same" and "added" ones joined by spaces are `after`
    with its whitespace evened out."""
    a, b = before.split(), after.split()
    pieces: list[tuple[str, Op]] = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            pieces.append((" ".join(a[i:j]), "same"))
            continue
        if j > i:
            pieces.append((" ".join(a[i:j]), "removed"))
        if m > k:
            pieces.append((" ".join(b[k:m]), "added"))
    return pieces


def agreement(one: str, other: str) -> float:
    """Share of words two texts have in common, in order: 0 nothing, 1 the same words."""
    a, b = _words(one), _words(other)
    if not a and not b:
        return 1.0
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


def same_words(one: str, other: str) -> bool:
    """Whether two texts differ in nothing but case, spacing and punctuation."""
    return _words(one, bare=True) == _words(other, bare=True)


def _words(text: str, bare: bool = False) -> list[str]:
    found = _WORD.findall(text.casefold())
    return [word for word in found if word[0].isalnum() or word[0] == "_"] if bare else found
