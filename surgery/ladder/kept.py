"""What a rung found, kept: a climb that was killed goes on where it was, and the next one on the same base
asks the base only what is new.

Kept like the audit's measurements, under everything that could change them: the model, its edits, library
versions and threads, the items and the setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from surgery.audit.cache import SideCache
from surgery.ladder.items import Item
from surgery.ladder.rung import Family, Score, Setting
from surgery.model import Model

# Raised whenever a rung changes what it asks or how it scores.
_VERSION = 2


def scores(
    store: SideCache, family: Family, model: Model, items: Sequence[Item], setting: Setting
) -> dict[str, list[Score]]:
    """The scores of a family's rungs, out of the store if they are there."""

    def compute() -> dict[str, Any]:
        found = family.climb(model, items, setting)
        return {name: [[s.margin, s.rank] for s in mine] for name, mine in found.items()}

    asked: list[Any] = [_VERSION, list(family.rungs), [asdict(item) for item in items]]
    asked += [setting.fold, setting.steps, setting.seed, setting.quick]
    # Only one rung looks at the directions, which are others for every edit, and one at the readers.
    asked += [vector.tolist() for vector in setting.directions if "direction" in family.rungs]
    read = setting.readers if "probe" in family.rungs else ()
    asked += [[r.layer, r.weights.sum(0).tolist()] if r else None for r in read]
    kept = store.json("ladder", asked, compute)
    return {name: [Score(*pair) for pair in mine] for name, mine in kept.items()}
