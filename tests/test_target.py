"""The fast target solver gives what the plain one gives: every model, every kind of row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_target import plain_targets
from tiny import FAMILIES

from surgery.facts import problem
from surgery.facts.partition import partition
from surgery.facts.rows import essence_row, rewriting_rows
from surgery.facts.target import TargetSettings, solve_targets
from surgery.spec import Fact

# Prefixes of different lengths, the longest beyond the sliding window of the tiny models (16 tokens).
PREFIXES = [
    "yes. ",
    "the old sun and the red moon were always good for one small blue star in the sky. ",
]
FACTS = [
    Fact(prompt="the capital city of {} is", subject="France", target="Rome"),
    # The subject is the first token, several tokens long; the answer is several tokens long, too.
    Fact(prompt="{} plays the", subject="Berlin Müller", target="old piano music"),
    Fact(prompt="what is spoken in the country {}", subject="Japan", target="German"),
]


def rows(model, facts=FACTS, prefixes=PREFIXES):
    rewriting = [rewriting_rows(model, fact, prefixes) for fact in facts]
    return rewriting, [essence_row(model, fact) for fact in facts]


def agree(fast, plain, tolerance=2e-3):
    assert torch.equal(fast.steps.cpu(), plain.steps)
    torch.testing.assert_close(fast.start, plain.start, rtol=1e-5, atol=1e-5)
    for name in ("loss", "nll", "kl"):
        torch.testing.assert_close(getattr(fast, name), getattr(plain, name), rtol=1e-3, atol=1e-4)
    apart = (fast.change - plain.change).norm(dim=-1) / plain.change.norm(dim=-1)
    assert apart.max() < tolerance, apart


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["value", "stream"])
@pytest.mark.parametrize("rate", [None, 2.0], ids=["shortest", "adam"])
def test_fast_equals_plain(tiny_model, family, site, rate):
    model = tiny_model(family)
    # The shortest steps need no decay to stay short; only Adam's gradient has it.
    decay = 1e-3 if rate is None else 0.1
    options = TargetSettings(layer=1, site=site, steps=5, learning_rate=rate, weight_decay=decay)
    fast = solve_targets(model, *rows(model), options)
    plain = plain_targets(model, *rows(model), options)
    agree(fast, plain)
    # It has worked, and each term of the loss has counted.
    untouched = plain_targets(model, *rows(model), replace(options, steps=1))
    assert (fast.nll < untouched.nll - 0.03).all() and (fast.kl > 1e-4).all()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_metric_makes_steps_short_in_itself(tiny_model, family):
    """Still what the long way gives; and half the directions, ten times as long, are hardly used."""
    model = tiny_model(family)
    options = TargetSettings(layer=1, site="stream", steps=4)
    scale = torch.ones(model.hidden_size)
    scale[::2] = 100.0
    fast = solve_targets(model, *rows(model), options, torch.diag(scale))
    agree(fast, plain_targets(model, *rows(model), options, torch.diag(scale)))
    plain = solve_targets(model, *rows(model), options)

    def share(found):
        return (found.change[:, ::2].norm(dim=-1) / found.change.norm(dim=-1)).mean()

    assert share(fast) < 0.5 * share(plain)
    agree(solve_targets(model, *rows(model), options, torch.eye(model.hidden_size)), plain)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("layer", [0, 3], ids=["first layer", "last layer"])
def test_first_and_last_layer(tiny_model, family, layer):
    model = tiny_model(family)
    options = TargetSettings(layer=layer, steps=3)
    # Above the last layer no token sees another: only an answer right behind the subject is reached.
    batch = rows(model, FACTS[2:])
    agree(solve_targets(model, *batch, options), plain_targets(model, *batch, options))


def test_no_prefixes_no_past(tiny_model):
    """One row, which begins with its subject: there is nothing before it to attend to."""
    model = tiny_model("llama")
    options = TargetSettings(layer=1, steps=4)
    batch = rows(model, FACTS[1:2], [])
    assert batch[0][0][0].subject > 0 and essence_row(model, FACTS[0]).subject == 0
    agree(solve_targets(model, *batch, options), plain_targets(model, *batch, options))
    single = rows(model, [Fact(prompt="{} is", subject="France", target="Rome")], [])
    assert single[0][0][0].subject == single[1][0].subject == 0
    agree(solve_targets(model, *single, options), plain_targets(model, *single, options))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_facts_leave_when_done_and_a_batch_equals_one_by_one(tiny_model, family):
    model = tiny_model(family)
    rewriting, essence = rows(model)
    options = TargetSettings(layer=1, steps=12, stop_loss=6.0, learning_rate=2.0)
    together = solve_targets(model, rewriting, essence, options)
    assert len(set(together.steps.tolist())) > 1, "the facts are to converge at different times"
    assert (together.loss < 6.0).any() and (together.steps < 12).any()
    agree(together, plain_targets(model, rewriting, essence, options), tolerance=2e-2)
    # Three batches of one give the facts back in the order they came in.
    agree(together, solve_targets(model, rewriting, essence, options, batch_rows=1), tolerance=2e-2)


def test_the_clamp_holds(tiny_model):
    model = tiny_model("llama")
    options = TargetSettings(layer=1, steps=8, learning_rate=3.0, clamp=0.5)
    fast = solve_targets(model, *rows(model), options)
    agree(fast, plain_targets(model, *rows(model), options))
    torch.testing.assert_close(fast.change.norm(dim=-1), 0.5 * fast.start.norm(dim=-1))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_padding_side_is_irrelevant(tiny_model, family):
    """Of the reference itself, and of the answer positions it reads."""
    model = tiny_model(family)
    options = TargetSettings(layer=1, steps=3)
    left = plain_targets(model, *rows(model), options, side="left")
    agree(plain_targets(model, *rows(model), options, side="right"), left)


def test_the_model_is_left_whole(tiny_model):
    model = tiny_model("gemma3")
    layers, hooks = list(model.layers), sum(len(m._forward_hooks) for m in model.hf.modules())
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    solve_targets(model, *rows(model), TargetSettings(layer=2, steps=2))
    assert list(model.layers) == layers
    assert sum(len(m._forward_hooks) for m in model.hf.modules()) == hooks
    assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())
    assert all(p.grad is None for p in model.hf.parameters())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(0, 12))
def test_buckets_are_the_cheapest(lengths, cost):
    def price(groups):
        return sum(len(g) * max(lengths[i] for i in g) + cost for g in groups)

    groups = partition(lengths, cost)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    # Some best partition is a cut of the sorted rows: try them all.
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for cuts in range(1 << (len(lengths) - 1)):
        ends = [n + 1 for n in range(len(lengths) - 1) if cuts >> n & 1] + [len(lengths)]
        begins = [0, *ends[:-1]]
        assert price(groups) <= price([order[b:e] for b, e in zip(begins, ends, strict=True)])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_buckets_change_nothing(tiny_model, family, monkeypatch):
    """One bucket of everything, and one for every length."""
    model = tiny_model(family)
    options = TargetSettings(layer=1, steps=3)
    found = []
    for cost in (10**6, 0):
        monkeypatch.setattr(
            problem, "partition", lambda lengths, cost=cost: partition(lengths, cost)
        )
        found.append(solve_targets(model, *rows(model), options))
    agree(*found)
