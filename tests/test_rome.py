"""ROME: W' k* = v*, at rank one, the least change there is; and the model then says so."""

from __future__ import annotations

import pytest
import torch
from plain_target import plain_targets
from test_least_squares import kkt_change
from tiny import FAMILIES, WORDS

from surgery.errors import SurgeryError
from surgery.facts.capture import capture, fact_keys
from surgery.facts.requests import prepare
from surgery.methods import solve
from surgery.methods.rome import target_settings
from surgery.methods.solved import weight_key
from surgery.model import Model, load
from surgery.spec import EditSpec, Fact, RomeEdit
from surgery.stack import applied, apply
from surgery.statistics import collect

FACTS = [
    Fact(prompt="the capital city of {} is", subject="France", target="Rome"),
    Fact(prompt="what is spoken in the country {}", subject="Japan", target="old German"),
]
PREFIXES = ["yes. ", "the sun and the moon. "]
LAYER = 1


@pytest.fixture(scope="module", autouse=True)
def text(tmp_path_factory):
    """A text for the statistics, and a cache of our own for them."""
    folder = tmp_path_factory.mktemp("statistics")
    g = torch.Generator().manual_seed(0)
    words = [WORDS[i] for i in torch.randint(len(WORDS), (800,), generator=g)]
    lines = [" ".join(words[i : i + 20]) for i in range(0, len(words), 20)]
    (folder / "text.txt").write_text("\n\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURGERY_CACHE", str(folder / "cache"))
        yield folder / "text.txt"


def rome(text, facts=FACTS[:1], **fields) -> RomeEdit:
    defaults = {"layer": LAYER, "prefixes": PREFIXES, "steps": 6, "statistics": str(text)}
    return RomeEdit(facts=list(facts), **{**defaults, **fields})


def solved(part: RomeEdit, model: Model, seed: int = 0):
    return solve(EditSpec(seed=seed, edits=[part]), model)


def change_of(delta, model: Model) -> torch.Tensor:
    """The change as (out, in), float64, whatever the layout on disk."""
    (key,) = delta.tensors
    assert key == weight_key(model, LAYER)
    value = delta.tensors[key].value().double()
    return value.T if model.architecture.layout == "conv1d" else value


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_values_and_stream_are_those_of_plain_hooks(tiny_model, family):
    """One padded pass that stops early, against one unpadded text at a time."""
    model = tiny_model(family)
    items = prepare(RomeEdit(facts=FACTS, prefixes=PREFIXES), model, 0).items
    rows = [row for item in items for row in item.rewriting]
    found = capture(model, rows, keys=[0, 2], values=[2], stream=[1, 2])
    for index, row in enumerate(rows):
        seen: dict[str, torch.Tensor] = {}
        handles = [
            model.mlp_out(2).register_forward_hook(
                lambda _m, a, o, seen=seen: seen.update(key=a[0], value=o)
            ),
            model.mlp_out(0).register_forward_pre_hook(
                lambda _m, a, seen=seen: seen.update(low=a[0])
            ),
        ]
        with torch.no_grad():
            ids = torch.tensor([row.ids])
            states = model.hf(ids, output_hidden_states=True).hidden_states
        for handle in handles:
            handle.remove()
        for got, expected in (
            (found.keys[0], seen["low"]),
            (found.keys[2], seen["key"]),
            (found.values[2], seen["value"]),
            (found.stream[1], states[2]),
            (found.stream[2], states[3]),
        ):
            torch.testing.assert_close(got[index], expected[0, row.subject], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_key_is_sent_to_the_value_by_the_least_change(tiny_model, text, family):
    model = tiny_model(family)
    part = rome(text)
    dW = change_of(solved(part, model), model)

    requests = prepare(part, model, 0)
    (item,) = requests.items
    k = fact_keys(model, [item], [LAYER])[LAYER]
    plain = plain_targets(model, [item.rewriting], [item.essence], target_settings(part, LAYER))
    d = plain.change.T.double()
    W = model.mlp_out_weight(LAYER).double()
    # W' k* = v*, where v* = W k* + d and d is what the plain solver finds.
    torch.testing.assert_close((W + dW) @ k, W @ k + d, rtol=1e-4, atol=1e-4 * float(d.abs().max()))
    values = torch.linalg.svdvals(dW)
    assert values[1] < 1e-6 * values[0], "rank one"
    # The same as the dense constrained least squares, in the metric of the second moment.
    statistics = collect(model, [LAYER], text, names=True)
    c = statistics.against(model, FACTS[:1])[LAYER]
    c = c + part.ridge * c.diagonal().mean() * torch.eye(len(c), dtype=torch.float64)
    expected = kkt_change(k, d, c)
    assert float((dW - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_edited_model_says_what_the_solver_promised(tiny_model, text, family):
    """The answer's probability, from plain transformers on the edited model, is the one reported.

    A text of one token, the subject, and an answer of one token: nothing but what the edit does to
    its key can change it. Behind a post-norm it holds only if the target was solved through the norm.
    """
    model = tiny_model(family)
    fact = Fact(prompt="{}", subject="(", target="the")  # no space behind a bracket
    part = rome(text, [fact], prefixes=[], steps=20, learning_rate=1.0)
    delta = solved(part, model)
    subject, answer = prepare(part, model, 0).items[0].rewriting[0].ids

    @torch.no_grad()
    def probability() -> float:
        return float(model.hf(torch.tensor([[subject]])).logits[0, 0].softmax(-1)[answer])

    (report,) = delta.metadata["diagnostics"][0]["facts"]
    before = probability()
    with applied(model, delta):
        after = probability()
    assert after == pytest.approx(report["probability"], rel=1e-3)
    assert after > 1.2 * before


def test_several_facts_are_solved_one_on_top_of_the_other(tiny_model, text):
    model = tiny_model("llama")
    together = change_of(solved(rome(text, FACTS), model), model)
    first = solved(rome(text, FACTS[:1]), model)
    with applied(model, first):
        second = solved(rome(text, FACTS[1:]), model)
    apart = change_of(first, model) + change_of(second, model)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-6)
    alone = change_of(solved(rome(text, FACTS[1:]), model), model)
    assert not torch.allclose(together, change_of(first, model) + alone, rtol=1e-2, atol=1e-4)
    assert torch.linalg.matrix_rank(together, rtol=1e-5) == 2


def test_same_spec_base_and_seed_give_the_same_delta(tiny_model, text, tmp_path, monkeypatch):
    """Also with nothing in the cache, and from the spec that the delta recorded."""
    model = tiny_model("gpt2")
    part = rome(text, prefixes=None, contexts=2)
    delta = solved(part, model)
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "empty"))
    assert solved(part, load(model.checkpoint.path, device="cpu")).id == delta.id
    assert solve(EditSpec.model_validate(delta.metadata["spec"]), model).id == delta.id
    assert solved(part, model, seed=1).id != delta.id, "other contexts are sampled"
    assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())


def test_on_top_of_an_edit_in_memory_or_of_an_edited_folder_is_the_same(tiny_model, text, tmp_path):
    model = tiny_model("llama")
    first = solved(rome(text, FACTS[:1]), model)
    second = rome(text, FACTS[1:], prefixes=None, contexts=2)
    with applied(model, first):
        in_memory = solved(second, model)
    apply([first], model.checkpoint.path, tmp_path / "edited")
    on_disk = solved(second, load(tmp_path / "edited", device="cpu"))
    assert in_memory.stack == on_disk.stack == (first.id,)
    assert in_memory.base_id == on_disk.base_id == model.checkpoint.id
    assert in_memory.id == on_disk.id


def test_what_cannot_be_solved_is_said(tiny_model, text):
    model = tiny_model("llama")
    with pytest.raises(SurgeryError, match="layer 7 is outside"):
        solved(rome(text, layer=7), model)
    clash = [FACTS[0], FACTS[0].model_copy(update={"target": "Berlin"})]
    with pytest.raises(SurgeryError, match="'Rome' and 'Berlin'"):
        solved(rome(text, clash), model)
    with pytest.raises(SurgeryError, match="list of facts is empty"):
        solved(rome(text, []), model)
    first = Fact(prompt="{} is", subject="France", target="red")
    delta = solved(rome(text, [first], steps=1), model)
    assert "first token for France" in delta.metadata["diagnostics"][0]["warnings"][0]
