"""Whether an answer is a refusal, as the flinch test judges it."""

from __future__ import annotations

from surgery.measure.scorer import judge


def refuses(text: str) -> bool:
    """True if the answer declines, in full or in part."""
    return judge(text).refused
