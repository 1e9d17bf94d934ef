"""How much text notices a change of the stream: the second moment of gradients is the curvature of KL."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from surgery.delta import LowRank
from surgery.errors import SurgeryError
from surgery.methods.solved import as_delta, weight_key
from surgery.model import tokenize
from surgery.model.hooks import first, hooks, with_first
from surgery.stack import applied
from surgery.statistics import metric, sensitivity
from surgery.statistics.moments import Moment
from surgery.statistics.sensitivity import gradients

pytestmark = pytest.mark.usefixtures("own_cache")
LAYER, PLACE = 1, 2


def curvature(model, row: list[int]) -> torch.Tensor:
    """Hessian at zero of KL(before || after), summed over the text, by a change at one token."""
    ids = torch.tensor([row])

    def log_p(change: torch.Tensor) -> torch.Tensor:
        place = torch.zeros(len(row), 1)
        place[PLACE] = 1
        with hooks() as attach:
            attach.post(
                model.layer(LAYER),
                lambda _m, a, k, o: with_first(o, first(o) + place * change),
            )
            return model.hf(ids, use_cache=False).logits[0].log_softmax(-1)

    before = log_p(torch.zeros(model.hidden_size)).detach()

    def divergence(change: torch.Tensor) -> torch.Tensor:
        return (before.exp() * (before - log_p(change))).sum()

    with sdpa_kernel(SDPBackend.MATH):  # the fast ones have no second derivative
        found = torch.autograd.functional.hessian(divergence, torch.zeros(model.hidden_size))
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_is_the_curvature_of_the_divergence(tiny_model, family, monkeypatch):
    """G of one token from many draws of what the model says, in batches padded for longer rows."""
    model = tiny_model(family)
    # Random weights notice every direction about equally, and then anything would pass.
    gain: torch.Tensor = model.final_norm.weight
    monkeypatch.setattr(gain, "data", gain.data + torch.linspace(-1, 2, model.hidden_size))
    row, longer = (
        tokenize(model, "the capital of France is"),
        tokenize(model, "tea and coffee " * 5),
    )
    dice, draws, copies = torch.Generator().manual_seed(0), [], 100
    for _ in range(20):
        g = gradients(model, LAYER, [*[row] * copies, longer], dice)
        assert len(g) == copies * (len(row) - 1) + len(longer) - 1
        draws.append(g[: copies * (len(row) - 1)].unflatten(0, (copies, -1))[:, PLACE - 1])
    g = torch.cat(draws)
    expected = curvature(model, row)
    found = g.T @ g / len(g)
    assert (found - expected).norm() < 0.15 * expected.norm()
    same_length = found.diagonal().mean() * torch.eye(len(found))
    assert (same_length - expected).norm() > 0.4 * expected.norm()


def test_is_of_the_base_and_found_again(tiny_model, monkeypatch):
    """An edit in place changes nothing, and the second time nothing is run."""
    model = tiny_model("llama")
    plain = sensitivity(model, LAYER, tokens=600, use_store=False)
    key = weight_key(model, LAYER + 1)
    weight = model.mlp_out_weight(LAYER + 1)
    change = LowRank(A=torch.ones(1, weight.shape[1]), B=torch.ones(weight.shape[0], 1))
    with applied(model, as_delta(model, {key: change})):
        edited = sensitivity(model, LAYER, tokens=600)
    assert torch.equal(edited.mean, plain.mean)
    assert plain.count >= 600 * 0.9
    monkeypatch.setattr(model, "hf", None)
    assert torch.equal(sensitivity(model, LAYER, tokens=600).mean, plain.mean)


def test_a_layer_the_model_lacks(tiny_model):
    with pytest.raises(SurgeryError, match="layer 9"):
        sensitivity(tiny_model("llama"), 9)


def test_the_metric_has_a_mean_of_one_and_a_floor():
    G = torch.diag(torch.tensor([0.0, 1.0, 3.0, 8.0]))
    M = metric(Moment(G, 10), ridge=0.1)
    torch.testing.assert_close(
        M.diagonal(), torch.tensor([0.1, 1 / 3 + 0.1, 1.1, 8 / 3 + 0.1]).double()
    )
