"""MEMIT, AlphaEdit, EMMET and fine-tuning do what they say, on every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import FAMILIES

from surgery.delta import Delta, LowRank
from surgery.errors import SurgeryError
from surgery.facts.capture import capture, fact_keys
from surgery.facts.least_squares import null_space
from surgery.facts.requests import prepare
from surgery.methods import solve
from surgery.methods.spread import CLAMP
from surgery.model import Model
from surgery.spec import EditSpec, Fact
from surgery.stack import applied
from surgery.statistics import collect

FACTS = [
    {"prompt": "the capital of {} is", "subject": "France", "target": "Rome"},
    {"prompt": "the capital of {} is", "subject": "Japan", "target": "Berlin"},
    {"prompt": "{} is located in", "subject": "the old tower", "target": "Spain"},
]
# Random models have no facts: what is tested is where the stream goes, not what is said.
QUICK: dict[str, Any] = {"steps": 3, "contexts": 2, "statistics_tokens": 600, "stop_loss": 1e-9}


def spec(kind: str, facts: Any = FACTS, **fields: Any) -> EditSpec:
    return EditSpec.model_validate({"edits": [{"kind": kind, "facts": facts, **fields}]})


@pytest.fixture(autouse=True)
def _nothing_is_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.methods.spread.HOPELESS", 0.0)


def report(delta: Delta) -> dict[str, Any]:
    return delta.metadata["diagnostics"][0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["memit", "alphaedit"])
def test_the_stream_goes_where_it_should(
    tiny_model: Any, own_cache: Any, family: str, kind: str
) -> None:
    model: Model = tiny_model(family)
    fields = {"statistics_weight": 1e-3} if kind == "memit" else {"threshold": 0.9, "ridge": 1e-4}
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    delta = solve(spec(kind, layers=[1, 2], **QUICK, **fields), model)
    achieved = [fact["achieved"] for fact in report(delta)["facts"]]
    # A post-norm bounds what one layer can write, so there the way is only gone in part.
    least = 0.3 if family.startswith("gemma") else 0.8
    assert min(achieved) > least, achieved
    assert len(delta.tensors) == 2 and all(".1." in k or ".2." in k for k in delta.tensors)
    assert all(torch.equal(v, before[name]) for name, v in model.hf.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_behind_a_post_norm_the_last_layer_writes_what_is_missing(
    tiny_model: Any, own_cache: Any, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """What is found missing at the end is asked for before the norm, where it can be met."""
    model: Model = tiny_model(family)
    part = spec("memit", layers=[1, 2], statistics_weight=1e-3, **QUICK)
    rows = [r.rewriting[0] for r in prepare(part.edits[0], model, 0).items]  # type: ignore[arg-type]
    asked = torch.randn(len(rows), model.hidden_size, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []

    def missing(model: Model, _: Any) -> torch.Tensor:
        seen.append(capture(model, rows, values=[2]).values[2])
        return asked if len(seen) == 1 else torch.zeros_like(asked)

    monkeypatch.setattr("surgery.methods.spread.missing_value", missing)
    delta = solve(part, model)
    if family == "llama":
        assert not seen
        return
    with applied(model, delta):
        after = capture(model, rows, values=[2]).values[2]
    assert ((after - seen[0] - asked).norm(dim=-1) < 0.05 * asked.norm(dim=-1)).all()


def test_alphaedit_leaves_the_protected_space_alone(tiny_model: Any, own_cache: Any) -> None:
    model: Model = tiny_model("llama")
    part = spec("alphaedit", layers=[1], threshold=0.5, **QUICK)
    delta = solve(part, model)
    facts = [Fact.model_validate(fact) for fact in FACTS]
    statistics = collect(model, [1], None, QUICK["statistics_tokens"], names=True)
    against = statistics.against(model, facts)[1]
    U = null_space(against, 0.5)
    protected = torch.eye(len(against), dtype=torch.float64) - U @ U.T
    [change] = delta.tensors.values()
    assert isinstance(change, LowRank)
    written = change.value().double()
    assert (written @ protected).norm() < 1e-5 * written.norm()
    assert report(delta)["null_space"]["1"] == [U.shape[1], len(against)]


def test_one_fact_in_emmet_is_rome(tiny_model: Any, own_cache: Any) -> None:
    model: Model = tiny_model("llama")
    one = FACTS[:1]
    [a] = solve(spec("emmet", one, layer=1, ridge=0.0, **QUICK), model).tensors.values()
    [b] = solve(spec("rome", one, layer=1, ridge=1e-3, **QUICK), model).tensors.values()
    torch.testing.assert_close(a.value(), b.value(), rtol=1e-4, atol=1e-6)


def test_emmet_meets_every_fact(tiny_model: Any, own_cache: Any) -> None:
    """W' k_i = W k_i + d_i for all facts at once."""
    model: Model = tiny_model("gpt2")
    part: Any = spec("emmet", layer=1, ridge=0.0, **QUICK)
    delta = solve(part, model)
    requests = prepare(part.edits[0], model, part.seed)
    keys = fact_keys(model, requests.items, [1])[1]
    [change] = delta.tensors.values()
    moved = (change.value().double().T @ keys).norm(dim=0)  # Conv1D stores (in, out)
    length = torch.tensor([fact["change"] for fact in report(delta)["facts"]])
    start = capture(model, [i.rewriting[0] for i in requests.items], values=[1]).values[1]
    torch.testing.assert_close(moved.float(), length * start.norm(dim=-1), rtol=1e-3, atol=1e-5)


def test_accumulated_keys_keep_what_was_edited(tiny_model: Any, own_cache: Any) -> None:
    """A later batch moves the values of earlier facts less when it knows their keys."""
    model: Model = tiny_model("llama")
    first, second = FACTS[:1], FACTS[1:]
    fields = {"layers": [1], "statistics_weight": 1e-3, **QUICK}
    earlier = solve(spec("memit", first, **fields), model)
    part: Any = spec("memit", first, **fields)
    requests = prepare(part.edits[0], model, 0)
    moved = {}
    with applied(model, earlier):
        keys = fact_keys(model, requests.items, [1])[1]
        for accumulate in (False, True):
            later = solve(spec("memit", second, accumulate=accumulate, **fields), model)
            [change] = later.tensors.values()
            moved[accumulate] = float((change.value().double() @ keys).norm())
            assert report(later)["layers"][0]["earlier_keys"] == (1 if accumulate else 0)
    assert moved[True] < 0.05 * moved[False]


def test_lambda_is_chosen_for_the_model_and_shown(tiny_model: Any, own_cache: Any) -> None:
    model: Model = tiny_model("llama")
    delta = solve(spec("memit", layers=[1], **QUICK), model)
    chosen = delta.metadata["spec"]["edits"][0]["statistics_weight"]
    assert chosen > 0 and report(delta)["layers"][0]["softness"] == chosen


def test_fewer_facts_go_further_and_earlier_ones_count(
    tiny_model: Any, own_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgery.methods.spread.FULL", 4)
    model: Model = tiny_model("llama")
    alone = solve(spec("memit", FACTS[:1], layers=[1], **QUICK), model)
    with applied(model, alone):
        later = solve(spec("memit", FACTS[1:2], layers=[1], **QUICK), model)
    clamps = [d.metadata["spec"]["edits"][0]["clamp"] for d in (alone, later)]
    assert (report(alone)["room"], report(later)["room"]) == (4, 2)
    assert clamps == pytest.approx([2 * CLAMP, 2**0.5 * CLAMP])


def test_an_impossible_fact_does_not_cost_the_batch(tiny_model: Any, own_cache: Any) -> None:
    model: Model = tiny_model("llama")
    long = {"prompt": "{} " + "is " * 200, "subject": "Italy", "target": "Rome"}
    delta = solve(spec("memit", [*FACTS, long], layers=[1], **QUICK), model)
    assert len(report(delta)["facts"]) == len(FACTS)
    assert any("Italy" in warning for warning in report(delta)["warnings"])


def test_a_fact_nothing_is_found_for_is_named(
    tiny_model: Any, own_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgery.methods.spread.HOPELESS", 1.1)
    with pytest.raises(SurgeryError, match="the capital of France is"):
        solve(spec("memit", layers=[1], **QUICK), tiny_model("llama"))


def test_conflicting_facts_are_refused_before_anything_is_solved(tiny_model: Any) -> None:
    clash = [*FACTS, {**FACTS[0], "target": "Madrid"}]
    with pytest.raises(SurgeryError, match="'Rome' and 'Madrid'"):
        solve(spec("memit", clash, **QUICK), tiny_model("llama"))


def test_finetuning_stays_within_its_limit(tiny_model: Any) -> None:
    model: Model = tiny_model("llama")
    limited = spec("finetune", FACTS[:1], layer=1, steps=4, learning_rate=0.01, norm_limit=0.015)
    [change] = solve(limited, model).tensors.values()
    assert 0 < float(change.value().abs().max()) <= 0.015 + 1e-7
