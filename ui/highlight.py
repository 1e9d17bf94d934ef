"""What differs between two texts, word by word; and how surprising each token is, as shading."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from ui.markup import Raw, esc

# A word with the space behind it, so that joining the pieces gives the text back.
_WORDS = re.compile(r"\S+\s*|\s+")


def words(text: str) -> list[str]:
    return _WORDS.findall(text)


def differing(left: str, right: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Both texts in pieces, each with whether the other text lacks it. The pieces join to the text."""
    a, b = words(left), words(right)
    matcher = SequenceMatcher(a=[w.strip() for w in a], b=[w.strip() for w in b], autojunk=False)
    out: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        for side, piece in ((0, "".join(a[a0:a1])), (1, "".join(b[b0:b1]))):
            if piece:
                out[side].append((piece, tag != "equal"))
    return out


def marked(left: str, right: str) -> tuple[Raw, Raw]:
    """Both texts as HTML, what the other one lacks in `<mark>`."""

    def side(pieces: list[tuple[str, bool]]) -> Raw:
        return Raw("".join(_mark(text) if new else esc(text) for text, new in pieces))

    one, other = differing(left, right)
    return side(one), side(other)


def _mark(text: str) -> str:
    bare = text.rstrip()
    if not bare:
        return esc(text)
    return f"<mark>{esc(bare)}</mark>{esc(text[len(bare) :])}"


def shaded(tokens: Sequence[str], surprise: Sequence[float | None], most: float = 8.0) -> Raw:
    """Tokens, each the darker the more surprising it was.

    surprise: -log p of every token in nats, None where nobody asked. most: at this much, full shade.
    """
    out = []
    for token, nats in zip(tokens, surprise, strict=True):
        if nats is None:
            out.append(esc(token))
            continue
        level = min(1.0, max(0.0, nats / most))
        out.append(
            f'<span class="shade" style="--s:{level:.2f}" title="{nats:.2f} nats">{esc(token)}</span>'
        )
    return Raw("".join(out))
