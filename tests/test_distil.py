"""Distillation into a low-rank change, and `sparing: distil`, which is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from behaviour import prompts, says_no
from tiny import FAMILIES

from surgery.directions import difference_of_means
from surgery.errors import SurgeryError
from surgery.methods import distilled, solve
from surgery.methods.distilled import default_layers, lessons
from surgery.model import Model
from surgery.spec import AblateEdit, EditSpec
from surgery.stack import applied
from surgery.training import LoRA
from surgery.training.distil import Lesson, distil, divergence, lesson
from surgery.training.supervised import answer_logits

TEXTS = ["the capital of France is", "old red wine", "no wine"]


@pytest.fixture(autouse=True)
def as_tiny_models_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their weights are small and their widths too: what moves a real model hardly moves them."""
    monkeypatch.setattr(distilled, "LEARNING_RATE", 1e-2)


def lesson_of(logits: torch.Tensor, kept: int) -> Lesson:
    top = logits.log_softmax(-1).topk(kept)
    return Lesson((0,), (0,) * len(logits), top.indices, top.values)


def test_the_divergence_is_that_of_the_likeliest_tokens_and_the_rest():
    generator = torch.Generator().manual_seed(0)
    theirs, mine = torch.randn(2, 5, 9, generator=generator)
    p, q = theirs.softmax(-1), mine.softmax(-1)
    whole = float((p * (p / q).log()).sum(-1).mean())
    # All tokens but one: the rest is that one, and the divergence is the whole one.
    assert float(divergence(mine, lesson_of(theirs, 8))) == pytest.approx(whole, rel=1e-5)
    # By hand with three: summing up outcomes can only lose divergence.
    ids = theirs.topk(3).indices
    p3, q3 = p.gather(-1, ids), q.gather(-1, ids)
    rest = (1 - p3.sum(-1)) * ((1 - p3.sum(-1)) / (1 - q3.sum(-1))).log()
    by_hand = float(((p3 * (p3 / q3).log()).sum(-1) + rest).mean())
    few = float(divergence(mine, lesson_of(theirs, 3)))
    assert few == pytest.approx(by_hand, rel=1e-5) and 0 < few < whole
    assert float(divergence(theirs, lesson_of(theirs, 3))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_at_no_distance_from_what_it_said_itself(tiny_model, family):
    model = tiny_model(family)
    data = lessons(model, TEXTS, tokens=3, weight=6.0)
    assert [x.weight for x in data] == [2.0] * 3
    with torch.no_grad():
        logits, targets = answer_logits(model, data)
    assert targets.tolist() == [token for x in data for token in x.answer]
    for mine, x in zip(logits.split([len(x.answer) for x in data]), data, strict=True):
        assert float(divergence(mine, x)) == pytest.approx(0, abs=1e-4)


def test_what_weighs_more_is_learned_better(tiny_model):
    """The same prompt with two teachers, each sure of its word: the change obeys the heavier."""
    model = tiny_model("llama")
    (said,) = lessons(model, TEXTS[:1], tokens=1)
    sure = torch.full((2, 1, model.head.weight.shape[0]), -5.0)
    sure[0, 0, 30], sure[1, 0, 40] = 5.0, 5.0

    def ahead(weight: float) -> float:
        """Log-odds of the second teacher's word against the first's."""
        data = [
            lesson(said, sure[0].log_softmax(-1)),
            lesson(said, sure[1].log_softmax(-1), weight),
        ]
        lora = LoRA(model, rank=2, seed=1)
        losses = distil(model, lora, data, steps=40, learning_rate=1e-2)
        assert len(losses) == 40 and losses[-1] < losses[0]
        with torch.no_grad(), lora.on(model):
            logits, _ = answer_logits(model, [said])
        return float(logits[0, 40] - logits[0, 30])

    assert ahead(0.1) < -0.3 and ahead(10.0) > 0.3
    with pytest.raises(SurgeryError, match="no lessons"):
        distil(model, LoRA(model, rank=2), [], steps=1)


def test_it_goes_from_some_and_stays_with_others(learned: Model):
    """ "red" and "one" are both answered with no; only "red" is to lose it."""
    repaired, kept, ordinary = (prompts(w, 32, seed=1) for w in ("red", "one", "green"))
    fields: dict[str, Any] = {"positive": repaired, "spare": kept, "negative": ordinary}
    delta = solve(EditSpec(edits=[AblateEdit(layers=[0, 1, 2], **fields)]), learned)
    layers = {int(key.split(".layers.")[1].split(".")[0]) for key in delta.tensors}
    assert layers == {0, 1, 2}
    fresh = [prompts(w, 30, seed=2) for w in ("red", "one", "green")]
    before = [says_no(learned, texts) for texts in fresh]
    with applied(learned, delta):
        after = [says_no(learned, texts) for texts in fresh]
    assert before[0] > 0.9 and before[1] > 0.9 and before[2] < 0.1
    assert after[0] < 0.2 and after[1] > 0.8 and after[2] < 0.2
    diagnostics = delta.metadata["diagnostics"][0]
    assert diagnostics["loss"]["last"] < 0.5 * diagnostics["loss"]["first"]
    # The recorded spec makes the same change, and strength is a factor on what is learned.
    recorded = EditSpec.model_validate(delta.metadata["spec"])
    half = recorded.edits[0].model_copy(update={"strength": 0.5})
    halved = solve(EditSpec(edits=[half]), learned)
    for key, change in halved.tensors.items():
        torch.testing.assert_close(change.value(), 0.5 * delta.tensors[key].value(), rtol=0, atol=0)


def test_a_saved_direction_brings_it_on_in_some(learned: Model, tmp_path: Path):
    """Green prompts are answered with yes and are to be answered with no; those about two are not."""
    green, two = prompts("green", 32, seed=1), prompts("two", 32, seed=1)
    file = tmp_path / "no.safetensors"
    difference_of_means(learned, prompts("red", 32, seed=1), green, layer=2).save(file)
    fields: dict[str, Any] = {"positive": green, "spare": two, "negative": two[:16]}
    part = AblateEdit(direction=str(file), strength=-1.0, layers=[0, 1, 2], **fields)
    delta = solve(EditSpec(edits=[part]), learned)
    fresh = [prompts(w, 30, seed=2) for w in ("green", "two")]
    with applied(learned, delta):
        after = [says_no(learned, texts) for texts in fresh]
    assert after[0] > 0.8 and after[1] < 0.2


@pytest.mark.parametrize(
    ("odd", "word"),
    [
        ({"norm": "columns"}, "norm has no meaning"),
        ({"ridge": 0.3}, "ridge has no meaning"),
        ({"strength": [1.0, 0.0]}, "one strength"),
        ({"strength": 0.0}, "strength 0"),
        ({"layers": [9]}, "layer 9"),
        ({"direction": ["a.safetensors", "b.safetensors"]}, "one direction"),
    ],
)
def test_what_has_no_meaning_is_said(tiny_model, odd, word):
    sets: dict[str, Any] = {"positive": TEXTS, "spare": TEXTS[::-1], "negative": TEXTS}
    with pytest.raises(SurgeryError, match=word):
        solve(EditSpec(edits=[AblateEdit(**sets, **odd)]), tiny_model("llama"))


def test_the_middle_of_the_model_learns():
    assert default_layers(30) == list(range(8, 19))
    assert default_layers(4) == [1, 2]
    assert default_layers(1) == [0]
