"""Deltas on a loaded model: put on, taken off, and nothing left of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import FAMILIES, random_delta, tiny_checkpoint

from surgery.checkpoint import Checkpoint
from surgery.errors import SurgeryError
from surgery.model import load
from surgery.stack import applied, apply, bare, set_edits, stack, stack_ids

EMBEDDING = "model.embed_tokens.weight"


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.hf.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def writer_keys(model, layers=(1, 2)) -> list[str]:
    return [model.stored_key(w.weight) for w in model.writers() if w.layer in layers]


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.hf(torch.arange(5, 15)[None]).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_come_back_bit_for_bit(tiny_model, family):
    model = tiny_model(family)
    before, said = weights(model), logits(model)
    one = random_delta(model.checkpoint, writer_keys(model))
    two = random_delta(model.checkpoint, writer_keys(model, [2, 3]), seed=1)
    with pytest.raises(ZeroDivisionError):
        with applied(model, one):
            key = writer_keys(model)[0]
            expected = model.checkpoint.read(key) + one.tensors[key].value()
            assert torch.equal(model.parameter(key), expected)
            with applied(model, [two]):
                assert stack_ids(model) == [one.id, two.id]
                both = logits(model)
                raise ZeroDivisionError
    assert not torch.allclose(both, said, atol=1e-3)
    assert same(weights(model), before) and torch.equal(logits(model), said)
    assert stack_ids(model) == [] and model.originals == {}


def test_order_and_company_make_no_difference(tiny_model):
    """Taking off the first of two leaves exactly the second: nothing is ever subtracted."""
    model = tiny_model("llama")
    keys = writer_keys(model)
    one, two = (random_delta(model.checkpoint, keys, seed, size=1e3) for seed in (1, 2))
    with applied(model, two):
        alone = weights(model)
    with applied(model, [one, two]):
        set_edits(model, [two])
        assert same(weights(model), alone)
        set_edits(model, [])


def test_a_failure_half_way_leaves_the_model_as_it_was(tiny_model, monkeypatch):
    from surgery.stack import memory

    model = tiny_model("llama")
    one = random_delta(model.checkpoint, writer_keys(model))
    two = random_delta(model.checkpoint, writer_keys(model, [2, 3]), seed=1)
    with applied(model, one):
        before = weights(model)
        real, calls = memory.materialize, []

        def failing(*args):
            calls.append(args)
            if len(calls) == 3:
                raise MemoryError
            return real(*args)

        monkeypatch.setattr(memory, "materialize", failing)
        with pytest.raises(MemoryError), applied(model, two):
            pass
        assert same(weights(model), before) and model.edits == [one]


def test_a_wrong_base_is_refused_in_memory_too(tiny_model):
    model = tiny_model("llama")
    foreign = random_delta(model.checkpoint, writer_keys(model), base_id="0" * 64)
    with pytest.raises(SurgeryError, match="solved for the base"), applied(model, foreign):
        pass
    with pytest.raises(SurgeryError, match="output head"):
        with applied(model, random_delta(model.checkpoint, [EMBEDDING])):
            pass
    assert model.edits == []


@pytest.mark.parametrize("after_both", [False, True])
def test_an_untied_head_keeps_the_base_embedding(tiny_model, after_both):
    """Also when the embedding was edited together with the head just before."""
    model = tiny_model("llama")
    both = random_delta(model.checkpoint, [EMBEDDING], metadata={"edits_head": True})
    split = replace(random_delta(model.checkpoint, [EMBEDDING], seed=1), untie=True)
    base = model.checkpoint.read(EMBEDDING)
    if after_both:
        set_edits(model, [both])
        assert model.tied and not torch.equal(model.head.weight, base)
    set_edits(model, [split])
    assert not model.tied
    assert torch.equal(model.head.weight, base)
    assert torch.equal(model.embedding.weight, base + split.tensors[EMBEDDING].value())
    set_edits(model, [])
    assert model.tied and torch.equal(model.head.weight, base)


def test_a_model_loaded_in_low_precision_is_edited_from_the_stored_base(tmp_path):
    """base + change is rounded once, not base first."""
    path = tiny_checkpoint(tmp_path, "llama")
    model = load(path, device="cpu", dtype=torch.bfloat16)
    key = writer_keys(model)[0]
    delta = random_delta(model.checkpoint, [key], size=1e-3)
    exact = (model.checkpoint.read(key) + delta.tensors[key].value()).bfloat16()
    rounded_twice = (
        model.checkpoint.read(key).bfloat16().float() + delta.tensors[key].value()
    ).bfloat16()
    assert not torch.equal(exact, rounded_twice)
    before = weights(model)
    with applied(model, delta):
        assert torch.equal(model.parameter(key), exact)
    assert same(weights(model), before)


def test_the_edits_of_a_folder_can_be_taken_out_in_memory(tmp_path):
    base = tiny_checkpoint(tmp_path, "gpt2")
    checkpoint = Checkpoint.open(base)
    keys = ["transformer.h.1.mlp.c_proj.weight", "transformer.h.2.mlp.c_proj.bias"]
    one, two, three = (random_delta(checkpoint, keys, seed) for seed in (1, 2, 3))
    apply([one, two], base, tmp_path / "both")
    apply([two], base, tmp_path / "second")
    model = load(tmp_path / "both", device="cpu")
    whole = weights(model)
    assert stack_ids(model) == [one.id, two.id]

    set_edits(model, [], off=[one.id])
    assert stack_ids(model) == [delta.id for delta in stack(model)] == [two.id]
    assert same(weights(model), weights(load(tmp_path / "second", device="cpu")))
    with bare(model):
        assert stack_ids(model) == []
        assert same(weights(model), weights(load(base, device="cpu")))
    with applied(model, three):
        assert stack_ids(model) == [two.id, three.id]
        expected = checkpoint.read(keys[1]) + two.tensors[keys[1]].value()
        assert torch.equal(model.parameter(keys[1]), expected + three.tensors[keys[1]].value())
    set_edits(model, [], off=[])
    assert same(weights(model), whole)
