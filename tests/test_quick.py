"""The short way in Python: it edits, says what changed, and goes back exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_checkpoint

import surgery
from surgery.errors import SurgeryError

POSITIVE = ["red tea", "red wine", "the red moon", "red coffee"]
NEGATIVE = ["old tea", "old wine", "the old moon", "old coffee"]
NUMBERS: dict[str, Any] = {"layer": 1, "contexts": 0, "statistics_tokens": 400}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("quick"), "llama")


@pytest.fixture
def model(folder: Path) -> surgery.Model:
    return surgery.load(folder, device="cpu")


def weights(model: surgery.Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.hf.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def to_rome(model: Any, **more: Any) -> Any:
    return surgery.edit(
        model, "The capital of {} is", subject="France", target="Rome", **{**NUMBERS, **more}
    )


def test_edit_is_on_the_model_until_undone(model: surgery.Model) -> None:
    bare = weights(model)
    result = to_rome(model)
    assert result.applied and not same(bare, weights(model))
    edited = weights(model)
    with surgery.applied(surgery.load(model.checkpoint.path, device="cpu"), result.delta) as other:
        assert same(edited, weights(other))
    result.undo()
    assert not result.applied and same(bare, weights(model)) and model.edits == []
    result.undo()  # once more does nothing
    assert same(bare, weights(model))


def test_before_and_after_are_what_the_model_says(model: surgery.Model) -> None:
    from surgery.model import generate

    prompt = "The capital of France is"
    plain = generate(model, [prompt], 30)[0].strip()
    result = to_rome(model, neighborhood_prompts=["The capital of Japan is"])
    changed = generate(model, [prompt], 30)[0].strip()
    assert changed != plain
    assert list(result.before) == list(result.after) == [prompt, "The capital of Japan is"]
    assert result.before[prompt] == plain and result.after[prompt] == changed
    assert prompt in str(result) and "before:" in str(result)


def test_they_stay_true_after_undo_and_leave_the_model_alone(model: surgery.Model) -> None:
    bare = weights(model)
    result = to_rome(model)
    wanted = to_rome(surgery.load(model.checkpoint.path, device="cpu")).after
    result.undo()
    assert result.after == wanted and result.before != result.after
    assert same(bare, weights(model))


def test_edits_stack_and_come_off_in_order(model: surgery.Model) -> None:
    bare = weights(model)
    first = to_rome(model)
    one = weights(model)
    second = surgery.ablate(model, positive=POSITIVE, negative=NEGATIVE, layer=2)
    assert second.delta.stack == (first.delta.id,)
    with pytest.raises(SurgeryError, match="solved on top of"):
        first.undo()
    second.undo()
    assert same(one, weights(model))
    first.undo()
    assert same(bare, weights(model))


def test_ablate_removes_the_direction(model: surgery.Model) -> None:
    result = surgery.ablate(model, positive=POSITIVE, negative=NEGATIVE, layer=2, strength=0.5)
    assert result.spec.edits[0].kind == "ablate"
    assert result.delta.metadata["diagnostics"][0]["leak"]["most"] == pytest.approx(0.5)
    assert list(result.before) == ["red tea", "red wine", "the red moon", "old tea"]


def test_prompt_sets_may_be_files(model: surgery.Model, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(POSITIVE))
    (tmp_path / "n.txt").write_text("\n".join(NEGATIVE))
    files = {"positive": str(tmp_path / "p.txt"), "negative": str(tmp_path / "n.txt")}
    result = surgery.ablate(model, **files, layer=2)
    result.undo()
    lists = surgery.ablate(model, positive=POSITIVE, negative=NEGATIVE, layer=2)
    assert result.delta.id == lists.delta.id


def test_report_is_of_this_edit_alone(model: surgery.Model, tmp_path: Path) -> None:
    suite = tmp_path / "least.yaml"
    suite.write_text(
        "name: least\ntexts:\n"
        "  - {kind: stories, file: benchmarks/text/stories.txt, passages: 2, tokens: 16}\n"
        "edit: {neighbours: 1, plus: false, generations: 2}\n"
    )
    surgery.ablate(model, positive=POSITIVE, negative=NEGATIVE, layer=2)
    before = weights(model)
    result = to_rome(model, target_true="Paris")
    now = weights(model)
    report = result.audit(suite)
    assert same(now, weights(model))
    assert [change.key for change in report.weights] == ["model.layers.1.mlp.down_proj.weight"]
    assert report.value("kl_mean") > 0
    result.undo()
    assert result.audit(suite).value("kl_mean") == report.value("kl_mean")
    assert same(before, weights(model))


def test_a_path_will_do(folder: Path) -> None:
    result = to_rome(folder)
    assert result.model.checkpoint.path == folder and result.applied


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"prompt": "The capital of Spain is"}, "does not contain its subject"),
        ({"layre": 3}, "layre"),
        ({"method": "magic"}, "magic"),
        ({"layer": 99}, "layer 99 is outside"),
        ({"target": " "}, "must not be blank"),
    ],
)
def test_wrong_words_are_one_line(
    model: surgery.Model, words: dict[str, Any], message: str
) -> None:
    bare = weights(model)
    full = {"prompt": "The capital of {} is", "subject": "France", "target": "Rome", **NUMBERS}
    with pytest.raises(SurgeryError, match=message) as caught:
        surgery.edit(model, **{**full, **words})
    assert "\n" not in str(caught.value)
    assert same(bare, weights(model)) and model.edits == []
