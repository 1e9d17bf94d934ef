"""What is refused, and what is reported, when deltas meet a base and one another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import random_delta, tiny_checkpoint

from surgery.checkpoint import Checkpoint
from surgery.delta import Delta, Dense, LowRank
from surgery.errors import SurgeryError
from surgery.stack import Lineage, check

W = "model.layers.{}.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def lineage(tmp_path_factory) -> Lineage:
    return Lineage.of(Checkpoint.open(tiny_checkpoint(tmp_path_factory.mktemp("base"), "llama")))


def random(lineage: Lineage, *layers: int, seed: int = 0, **fields) -> Delta:
    return random_delta(lineage.checkpoint, [W.format(n) for n in layers], seed, **fields)


def test_another_base_is_refused(lineage):
    foreign = random(lineage, 0, base_id="0" * 64)
    with pytest.raises(SurgeryError, match="was solved for the base 000000000000"):
        check(lineage, [foreign])
    check(lineage, [foreign], force=True)


def test_a_tensor_that_is_not_the_one_of_the_solve_is_refused(lineage):
    other = random(lineage, 0, base_hashes={W.format(0): "0" * 64})
    with pytest.raises(SurgeryError, match="layers.0.mlp.down_proj.weight.*not the tensor"):
        check(lineage, [other])


@pytest.mark.parametrize("force", [False, True])
def test_what_cannot_fit_is_refused_whatever_is_asked(lineage, force):
    turned = {W.format(0): LowRank(A=torch.ones(1, 32), B=torch.ones(48, 1))}
    with pytest.raises(SurgeryError, match=r"shape \(48, 32\).*\(32, 48\)"):
        check(lineage, [Delta(turned, lineage.base_id)], force)
    nowhere = {W.format(9): LowRank(A=torch.ones(1, 48), B=torch.ones(32, 1))}
    with pytest.raises(SurgeryError, match="layers.9"):
        check(lineage, [Delta(nowhere, lineage.base_id)], force)


def test_an_edit_goes_on_top_of_those_it_was_solved_on(lineage):
    first = random(lineage, 0)
    second = random(lineage, 1, seed=1, stack=(first.id,))
    check(lineage, [first, second])
    for wrong in ([second, first], [second]):
        with pytest.raises(SurgeryError, match=f"on top of edit {first.id[:12]}"):
            check(lineage, wrong)
        check(lineage, wrong, force=True)
    with pytest.raises(SurgeryError, match="applied already"):
        check(lineage, [first, first])


def test_a_tied_head_is_never_edited_silently(lineage):
    silent = random_delta(lineage.checkpoint, [EMBEDDING])
    with pytest.raises(SurgeryError, match="also the output head.*embeddings: untie"):
        check(lineage, [silent])
    split = replace(silent, untie=True)
    both = replace(silent, metadata={"edits_head": True})
    check(lineage, [split])
    check(lineage, [both])
    with pytest.raises(SurgeryError, match="as one tensor"):
        check(lineage, [both, replace(split, stack=(both.id,))])


def test_an_untied_head_needs_no_word(tmp_path):
    path = tiny_checkpoint(tmp_path, "llama", tie_word_embeddings=False)
    checkpoint = Checkpoint.open(path)
    assert check(Lineage.of(checkpoint), [random_delta(checkpoint, [EMBEDDING])]) == []


def test_edits_solved_apart_on_one_tensor_are_reported(lineage):
    key = W.format(0)
    ones, half = torch.ones(1, 48), torch.ones(1, 48)
    half[:, 24:] = -1  # orthogonal to ones
    half[:, 0] = 1
    B = torch.ones(32, 1)

    def on(a: torch.Tensor, name: str, **fields) -> Delta:
        metadata = {"spec": {"name": name}}
        return Delta({key: LowRank(A=a, B=B)}, lineage.base_id, metadata=metadata, **fields)

    first = on(ones, "first")
    mixed = ones + half  # cosine with ones: 1 / sqrt(2)
    (warning,) = check(lineage, [first, on(mixed, "second")])
    assert "first and second both change" in warning and "71%" in warning
    assert "0%" in check(lineage, [first, on(half, "second")])[0]
    assert check(lineage, [first, on(ones, "second", stack=(first.id,))]) == []
    assert check(lineage, [first, random(lineage, 1)]) == []
    dense = Delta({key: Dense(torch.ones(32, 48))}, lineage.base_id)
    assert "100%" in check(lineage, [first, dense])[0]


def test_two_edits_of_one_fact_are_reported(lineage):
    def fact(target: str, seed: int, prompt: str = "The capital of {} is") -> Delta:
        facts = [{"prompt": prompt, "subject": "France", "target": target}]
        spec = {"name": target, "edits": [{"kind": "rome", "facts": facts}]}
        return random(lineage, seed, seed=seed, metadata={"spec": spec})

    (warning,) = check(lineage, [fact("Rome", 0), fact("Oslo", 1, "the capital of France is")])
    assert "'Rome' before, 'Oslo' now" in warning
    assert check(lineage, [fact("Rome", 0), fact("French", 1, "They speak {}")]) == []


def test_an_edit_solved_before_an_ablation_is_reported(lineage):
    def of_kind(kind: str, seed: int, **fields) -> Delta:
        spec = {"name": kind, "edits": [{"kind": kind}]}
        return random(lineage, seed, seed=seed, metadata={"spec": spec}, **fields)

    ablation, rome = of_kind("ablate", 0), of_kind("rome", 1)
    assert "write some of it back" in check(lineage, [ablation, rome])[0]
    assert check(lineage, [rome, ablation]) == []
    assert check(lineage, [ablation, of_kind("rome", 1, stack=(ablation.id,))]) == []
