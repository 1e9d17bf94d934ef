"""A smaller sample of a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def spread(items: Sequence[Any], most: int | None) -> list[Any]:
    """`most` of the items, evenly over the list and the same every time."""
    if most is None or most >= len(items):
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]
