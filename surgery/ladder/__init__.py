"""Hidden or gone? The ladder asks for old answers in ever more forceful ways."""

from __future__ import annotations

from surgery.ladder.climb import halves, ladder
from surgery.ladder.items import Item, items_of, twins
from surgery.ladder.registry import FAMILIES
from surgery.ladder.result import ItemResult, Ladder, Overall, RungResult, Share
from surgery.ladder.rung import Family, Score, Setting

__all__ = [
    "FAMILIES",
    "Family",
    "Item",
    "ItemResult",
    "Ladder",
    "Overall",
    "RungResult",
    "Score",
    "Setting",
    "Share",
    "halves",
    "items_of",
    "ladder",
    "twins",
]
