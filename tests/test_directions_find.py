"""Finding a direction in a model that has learned something, and what the interventions do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from behaviour import prompts, says_no
from tiny import FAMILIES

from surgery.cli import main
from surgery.directions import Direction, activations, difference_of_means
from surgery.directions.algebra import orthonormal, unit
from surgery.directions.conditional import detector
from surgery.directions.intervene import ablating, adding
from surgery.directions.metric import Opening
from surgery.directions.picture import draw, table
from surgery.directions.select import select, split
from surgery.errors import SurgeryError
from surgery.methods import solve
from surgery.methods.sparing import SHARE
from surgery.model import Model
from surgery.model.hooks import hooks
from surgery.spec import AblateEdit, EditSpec
from surgery.stack import applied


def test_the_found_direction_is_what_the_behaviour_hangs_on(learned: Model, tmp_path: Path):
    red, green = prompts("red", 32, seed=1), prompts("green", 32, seed=1)
    found = select(learned, red, green, positions=2, layers=range(1, 4), tries=6)
    assert " no" in found.opening["words"]
    best = found.tried[0]
    assert best.effect is not None and best.effect.bypass > 0.4
    assert best.induce > 0.5
    assert found.direction.layers == list(range(best.first, best.last + 1))

    fresh = prompts("red", 30, seed=2)
    before = says_no(learned, fresh)
    generator = torch.Generator().manual_seed(0)
    chance = unit(torch.randn(learned.hidden_size, generator=generator))
    chosen = found.direction
    reads = None if chosen.reader is None else chosen.reader[None]
    layers = dict.fromkeys(chosen.layers or [], 1.0)
    with ablating(learned, chosen.vector[None], layers, readers=reads):
        after = says_no(learned, fresh)
    refined = [c for c in found.tried if (c.layer, c.position) == (best.layer, best.position)]
    windows = {(c.first, c.last) for c in refined}
    # Other ends were tried, and then other starts.
    assert {(1, 2), (1, 3)} <= windows and any(first == 0 for first, _ in windows)
    assert {c.whitened for c in refined} == {False, True}
    with ablating(learned, chance[None]):
        control = says_no(learned, fresh)
    assert before > 0.9
    assert after < before - 0.3
    assert control > before - 0.15

    other = prompts("green", 30, seed=2)
    gap = found.direction.positive - found.direction.negative
    quiet = says_no(learned, other)
    with adding(learned, gap, found.direction.layer):
        assert says_no(learned, other) > quiet + 0.3

    path = found.direction.save(tmp_path / "no.safetensors")
    again = Direction.load(path)
    assert torch.equal(again.vector, found.direction.vector)
    assert again.metadata["selection"]["chosen"]["layer"] == found.direction.layer
    assert "chosen" in table(found)
    picture = draw(found, tmp_path / "choice.svg")
    assert picture.read_text().count("<path") > 10
    assert draw(found, tmp_path / "again.svg").read_bytes() == picture.read_bytes()


def test_held_out_prompts_are_held_out():
    train, held = split([str(i) for i in range(40)], most=8)
    assert len(held) == 8 and not set(train) & set(held) and len(train) == 32
    # From all over a long list, which may be sorted by subject.
    train, held = split([str(i) for i in range(400)], most=8)
    assert len(held) == 8 and len(train) == 392 and int(held[-1]) > 390 and int(held[0]) < 60


def test_too_few_prompts_is_said(learned: Model):
    with pytest.raises(SurgeryError, match="needs 8"):
        select(learned, ["red"] * 3, prompts("green", 10))


def test_a_picture_has_a_known_ending(learned: Model, tmp_path: Path):
    found = select(learned, prompts("red", 12), prompts("green", 12), layers=[2], positions=1)
    with pytest.raises(SurgeryError, match="picture"):
        draw(found, tmp_path / "choice.txt")


def test_opening_tokens_come_from_the_model():
    plus, minus = torch.zeros(4, 10), torch.zeros(4, 10)
    plus[:, 3], minus[:, 7] = 5.0, 5.0
    opening = Opening.of(plus, minus)
    assert opening.tokens.tolist() == [3]
    assert opening.share(plus) == pytest.approx(1)
    assert opening.share(minus) == pytest.approx(0)
    assert opening.positive > 0 > opening.negative
    assert not opening.weak and Opening.of(plus, plus + 0.0).weak
    # log-odds of token 3, by hand
    p = torch.softmax(plus[0].double(), 0)[3]
    assert opening.positive == pytest.approx(float((p / (1 - p)).log()))


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_do_not_depend_on_batching_or_the_shared_prefix(tiny_model, family):
    model = tiny_model(family)
    texts = ["the capital of France is", "the capital of Japan is a large old city", "the sun"]
    found = activations(model, texts, positions=2).stream
    for row, text in enumerate(texts):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        expected = model.hf(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in range(model.n_layers):
            torch.testing.assert_close(
                found[row, :, layer], expected[layer][0, -2:], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_ablating_scales_what_every_writer_writes(tiny_model, family, strength):
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(1)
    R = orthonormal(torch.randn(2, model.hidden_size, generator=generator)).float()
    writer = next(w for w in model.writers() if w.layer == 0 and w.component == "attention")
    seen: list[torch.Tensor] = []
    module = model.module(writer.post_norm or writer.module)

    def run() -> torch.Tensor:
        with hooks() as attach:
            attach.post(module, lambda _m, _a, _k, output: seen.append(output @ R.T))
            model.hf(input_ids=torch.arange(3, 9)[None])
        return seen.pop()

    before = run()
    with ablating(model, R, strength):
        after = run()
    torch.testing.assert_close(after, (1 - strength) * before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(), before, rtol=0, atol=0)


def test_a_detector_separates_what_it_was_fitted_to():
    generator = torch.Generator().manual_seed(0)
    axis = torch.randn(3, 64, generator=generator)
    on, spare, ordinary = (
        axis[i] + 0.5 * torch.randn(40, 64, generator=generator) for i in range(3)
    )
    a, fit = detector(on[:20], [spare[:20], ordinary[:20]], ridge=0.1)
    assert float((on[:20].double() @ a).mean()) == pytest.approx(1)
    assert 0.3 < fit < 1
    fresh = [float((k[20:].double() @ a).mean()) for k in (on, spare, ordinary)]
    assert fresh[0] > 0.7 and abs(fresh[1]) < 0.25 and abs(fresh[2]) < 0.25


def test_a_shift_takes_it_from_some_and_leaves_it_with_others(learned: Model):
    """ "red" and "one" are both answered with no; only "red" is to lose it."""
    repaired, kept, ordinary = (prompts(w, 32, seed=1) for w in ("red", "one", "green"))
    sets: dict[str, Any] = {"positive": repaired, "spare": kept, "negative": ordinary}
    fields = {**sets, "sparing": "shift"}
    whole = 1 / SHARE
    part = AblateEdit(layers=[0, 1, 2], strength=whole, **fields)
    delta = solve(EditSpec(edits=[part]), learned)
    assert all(change.rank == 1 for change in delta.tensors.values())
    fresh = [prompts(w, 30, seed=2) for w in ("red", "one", "green")]
    before = [says_no(learned, texts) for texts in fresh]
    with applied(learned, delta):
        after = [says_no(learned, texts) for texts in fresh]
    assert before[0] > 0.9 and before[1] > 0.9 and before[2] < 0.1
    assert after[0] < before[0] / 2
    assert after[1] > before[1] - 0.1
    assert after[2] < 0.15
    with pytest.raises(SurgeryError, match="no meaning"):
        solve(EditSpec(edits=[AblateEdit(norm="columns", **fields)]), learned)
    with pytest.raises(SurgeryError, match="one strength"):
        solve(EditSpec(edits=[AblateEdit(strength=[1.0, 0.0], **fields)]), learned)


def test_a_saved_direction_brings_it_on_where_the_detector_says(learned: Model, tmp_path: Path):
    """Green prompts are answered with yes; those about one thing are made to be answered with no."""
    red, green = prompts("red", 32, seed=1), prompts("green", 32, seed=1)
    file = tmp_path / "no.safetensors"
    found = difference_of_means(learned, red, green, layer=2)
    found.save(file)
    spare, negative = prompts("two", 32, seed=1), prompts("two", 32, seed=3)
    sets: dict[str, Any] = {"positive": green, "spare": spare, "negative": negative}
    fields = {**sets, "sparing": "shift"}
    part = AblateEdit(direction=str(file), strength=-0.6, ridge=0.01, **fields)
    delta = solve(EditSpec(edits=[part]), learned)
    assert all(change.rank == 1 for change in delta.tensors.values())
    # Written below the layer it was read at, along the gap of the two means and nothing else.
    gap = unit(found.positive - found.negative)
    for key, change in delta.tensors.items():
        assert int(key.split(".layers.")[1].split(".")[0]) < 2
        moved = change.value().double()
        torch.testing.assert_close(gap[:, None] * (gap @ moved), moved, rtol=1e-3, atol=1e-6)
    fresh = [prompts(w, 30, seed=2) for w in ("green", "two")]
    before = [says_no(learned, texts) for texts in fresh]
    with applied(learned, delta):
        after = [says_no(learned, texts) for texts in fresh]
    assert before[0] < 0.1 and after[0] > 0.5
    assert after[1] < before[1] + 0.2
    with pytest.raises(SurgeryError, match="one direction"):
        solve(EditSpec(edits=[AblateEdit(direction=[str(file)] * 2, **fields)]), learned)


def test_the_command_and_the_spec_choose_alike(
    learned: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = {}
    for name, word in (("positive", "red"), ("negative", "green")):
        files[name] = tmp_path / f"{name}.txt"
        files[name].write_text("\n".join(prompts(word, 16, seed=1)))
    out, plot = tmp_path / "r.safetensors", tmp_path / "r.png"
    code = main(
        ["direction", "--base", str(learned.checkpoint.path), "-o", str(out), "--plot", str(plot)]
        + ["--positive", str(files["positive"]), "--negative", str(files["negative"]), "--json"]
    )
    said = json.loads(capsys.readouterr().out)
    assert code == 0 and plot.stat().st_size > 1000
    saved = Direction.load(out)
    assert (said["layer"], said["position"]) == (saved.layer, saved.position)
    assert said["candidates"][0]["score"] is not None
    part = AblateEdit(positive=str(files["positive"]), negative=str(files["negative"]))
    delta = solve(EditSpec(edits=[part]), learned)
    assert delta.metadata["spec"]["edits"][0]["layer"] == saved.layer
    by_file = solve(EditSpec(edits=[AblateEdit(direction=str(out))]), learned)
    assert by_file.id == delta.id
