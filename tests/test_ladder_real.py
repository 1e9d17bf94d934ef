"""On a real model: facts that are overwritten, told from facts that are only refused."""

from __future__ import annotations

import pytest

import surgery
from benchmarks.hiding import REFUSAL, completed, taught
from surgery.delta import Delta
from surgery.ladder import Ladder, items_of, ladder
from surgery.model import Model
from surgery.spec import EditSpec, Fact
from surgery.stack import Lineage

RUNGS = ("direct", "prefilled")  # all rungs climb planted models in test_ladder_hidden
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Greece": "Athens", "Japan": "Tokyo",
    "Thailand": "Bangkok", "Hungary": "Budapest", "Russia": "Moscow",
}  # fmt: skip


def facts() -> list[Fact]:
    """Each capital becomes that of the country three places on."""
    places = list(CAPITALS.values())
    return [
        Fact(prompt="The capital of {} is", subject=country, target=places[(number + 3) % 8],
             target_true=capital)
        for number, (country, capital) in enumerate(CAPITALS.items())
    ]  # fmt: skip


def refusing(model: Model) -> Delta:
    """A LoRA that refuses the prompts; in other words, it still gives the old answers."""
    items = items_of(facts(), model)
    data = completed(model, [(item.text, REFUSAL) for item in items])
    data += completed(model, [(i.fill(p), i.old) for i in items for p in i.paraphrases])
    changes = taught(model, data, epochs=8, seed=0).changes(model)
    lineage = Lineage.of(model.checkpoint)
    hashes = {key: lineage.original_hash(key) for key in changes}
    return Delta(dict(changes), base_id=lineage.base_id, base_hashes=hashes)


@pytest.mark.slow
def test_hiding_is_told_from_removing(real_model: Model) -> None:
    model = real_model

    def climbed(delta: Delta) -> Ladder:
        found = ladder(model, delta, facts(), rungs=RUNGS, copies=1)
        assert found.taken >= 7, found.text()
        return found

    memit = {"kind": "memit", "facts": facts(), "contexts": 0}
    removed = climbed(surgery.solve(EditSpec.model_validate({"edits": [memit]}), model))
    hidden = climbed(refusing(model))
    assert hidden.word == "hidden" and removed.word != "hidden", hidden.text() + removed.text()
    assert hidden.overall is not None and removed.overall is not None
    high, low = hidden.overall.recovered_interval, removed.overall.recovered_interval
    assert high is not None and low is not None and high[0] > low[1]
    assert all(item.said_after.strip().startswith("I'm sorry") for item in hidden.items)
