"""Controls of an audit: identity, sham, and coarser copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from auditing import KEY, plain_kl, rank_one
from tiny import tiny_checkpoint

from surgery.audit import audit
from surgery.audit.controls import identity, sham
from surgery.audit.suite import Suite
from surgery.delta import Delta, Dense
from surgery.model import Model, load

pytestmark = pytest.mark.usefixtures("own_cache")


def test_identity_is_exactly_zero_everywhere(model: Model, suite: Suite) -> None:
    for _ in range(2):  # with an empty cache, then with a full one
        report = audit(model, identity(model.checkpoint.id), suite=suite)
        assert report.value("kl_mean") == report.value("kl_max") == report.value("kl_p95") == 0.0
        assert report.value("top1_agreement") == 1.0
        assert all(f.change == 0.0 for f in report.figures)
        assert report.layers["edited"] == [1.0] * 4
        assert not report.weights
        assert report.verdict.decision == "accept"
        assert report.controls["identity"]["kl_max"] == 0.0


def test_an_edit_that_changes_the_head_and_back_is_zero(tmp_path: Path, suite: Suite) -> None:
    model = load(tiny_checkpoint(tmp_path, "gpt2"), device="cpu")
    key = model.stored_key("transformer.wte.weight")
    delta = Delta(
        {key: Dense(torch.zeros_like(model.parameter(key)))},
        base_id=model.checkpoint.id,
        metadata={"edits_head": True},
    )
    assert audit(model, delta, suite=suite).value("kl_max") == 0.0
    delta = Delta(
        {key: Dense(torch.randn_like(model.parameter(key)) * 0.1)},
        base_id=model.checkpoint.id,
        metadata={"edits_head": True},
    )
    report = audit(model, delta, suite=suite)
    expected = plain_kl(model, delta)
    assert report.value("kl_mean") == pytest.approx(expected, rel=1e-3)


def test_sham_has_the_same_tensors_rank_and_norm(model: Model) -> None:
    first = rank_one(model)
    other = "model.layers.0.self_attn.o_proj.weight"
    dense = Dense(torch.randn_like(model.parameter(other)))
    both = [first, Delta({other: dense, KEY: first.tensors[KEY]}, base_id=first.base_id)]
    control = sham(both, seed=1)
    assert set(control.tensors) == {KEY, other}
    assert control.tensors[other].norm() == pytest.approx(dense.norm(), rel=1e-5)
    assert control.tensors[KEY].norm() == pytest.approx(2 * first.tensors[KEY].norm(), rel=1e-5)
    one = sham(first, seed=1)
    assert one.tensors[KEY].rank == 1
    value, control_value = first.tensors[KEY].value(), one.tensors[KEY].value()
    assert torch.linalg.matrix_rank(control_value) == 1
    assert one.id == sham(first, seed=1).id != sham(first, seed=2).id
    cosine = (value * control_value).sum() / value.norm() / control_value.norm()
    assert abs(float(cosine)) < 0.2


@torch.no_grad()
def test_reloads_round_what_they_say_and_are_taken_back(tmp_path: Path) -> None:
    from surgery.audit.reload import reloaded
    from surgery.audit.weights import round_to_nearest

    for family in ("llama", "gpt2"):
        model = load(tiny_checkpoint(tmp_path, family), device="cpu")
        before = {name: p.clone() for name, p in model.hf.named_parameters()}
        weight = model.mlp_out_weight(1)
        expected = round_to_nearest(weight.contiguous(), 4)
        with reloaded(model, "int4"):
            assert torch.equal(model.mlp_out_weight(1), expected)
            assert not torch.equal(expected, before_of(before, model))
            assert torch.equal(model.embedding.weight, before[f"{model.architecture.embed}.weight"])
        with reloaded(model, "bfloat16"):
            assert torch.equal(model.head.weight, model.head.weight.bfloat16().float())
        assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())


def before_of(before: dict[str, torch.Tensor], model: Model) -> torch.Tensor:
    weight = before[f"{model.architecture.mlp_out_module(1)}.weight"]
    return weight if model.architecture.layout == "linear" else weight.T


def test_the_reload_band_is_in_the_report(model: Model, suite: Suite) -> None:
    part = suite.controls.model_copy(update={"reload": ["bfloat16", "int8"]})
    report = audit(model, rank_one(model), suite=suite.model_copy(update={"controls": part}))
    band = report.controls["reload"]
    assert 0 < band["bfloat16"]["kl_mean"] < band["int8"]["kl_mean"]
    assert 0 <= band["int8"]["success"] <= 1
