"""Which edit of a stack did the damage: one planted culprit among harmless edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import random_delta, tiny_checkpoint

from surgery.audit.attribution import attribute, bisect, leave_one_out, who_broke
from surgery.audit.suite import Suite
from surgery.checkpoint import Checkpoint
from surgery.cli import main
from surgery.delta import Delta, Dense, save_delta
from surgery.errors import SurgeryError
from surgery.model import Model, load
from surgery.stack import applied, apply, set_edits

TEXTS = ("the capital of France is Paris and the river is old", "one two three four five six seven")
PROMPTS = (
    "the wine is",
    "the sun is",
    "the star is",
    "the piano is",
    "tea and coffee",
    "music from",
)
PAIRS = (("red", "green"), ("old", "new"), ("north", "south"))
SUITE = """
version: 1
name: tiny
texts:
  - {kind: words, file: text.txt, tokens: 32}
tasks:
  - {name: choice, kind: choice, file: choice.jsonl}
"""


@pytest.fixture(autouse=True)
def _own_cache(own_cache: Path) -> None:
    pass


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("attribution"), "llama")


@pytest.fixture
def model(base: Path) -> Model:
    return load(base, device="cpu")


@pytest.fixture(scope="module")
def suite_file(base: Path) -> Path:
    """A suite whose right answers are what the tiny model prefers, as a real base would have it."""
    from surgery.audit import answer_logprobs

    model = load(base, device="cpu")
    rows = []
    for prompt in PROMPTS:
        for pair in PAIRS:
            scores = answer_logprobs(model, [(prompt, word) for word in pair])
            gold = 0 if scores[0].total > scores[1].total else 1
            rows.append({"query": f"{prompt}", "choices": list(pair), "gold": gold})
    folder = base.parent / "suite"
    folder.mkdir()
    (folder / "text.txt").write_text("\n\n".join(TEXTS))
    (folder / "choice.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "tiny.yaml").write_text(SUITE)
    return folder / "tiny.yaml"


@pytest.fixture
def suite(suite_file: Path) -> Suite:
    return Suite.load(suite_file)


def edit(base: Path, seed: int, size: float, layer: int, **spec: Any) -> Delta:
    """A random edit of one layer; size 1 destroys, 0.0001 does nothing to speak of."""
    key = f"model.layers.{layer}.mlp.down_proj.weight"
    metadata = {"spec": {"name": f"edit of layer {layer}", **spec}}
    return random_delta(Checkpoint.open(base), [key], seed, size, metadata=metadata)


@pytest.fixture
def stacked(base: Path) -> list[Delta]:
    """Five edits, of which the third does the damage."""
    sizes = (1e-5, 1e-5, 2.0, 1e-5, 1e-5)
    return [edit(base, seed, size, seed % 4) for seed, size in enumerate(sizes)]


def test_the_planted_edit_is_named(model: Model, suite: Suite, stacked: list[Delta]) -> None:
    before = {key: value.clone() for key, value in model.hf.state_dict().items()}
    found = attribute(model, stacked, suite)
    worst = found.shares[0]
    assert (worst.edit, worst.place) == (stacked[2].id, 3)
    assert found.kl > 0.1 and worst.kl == pytest.approx(found.kl, rel=1e-3)
    assert all(abs(share.kl) < 0.01 * found.kl for share in found.shares[1:])
    assert found.failed and all(failed.edits == (3,) for failed in found.failed)
    assert worst.lost == len(found.failed) and set(worst.items) == {f.id for f in found.failed}
    assert all(share.lost == share.won == 0 for share in found.shares[1:])
    assert all(torch.equal(model.hf.state_dict()[k], v) for k, v in before.items())
    assert leave_one_out(model, stacked, suite) == found.shares
    assert json.loads(json.dumps(found.to_dict()))["shares"][0]["name"] == worst.name


def test_the_figures_are_those_of_an_audit(
    model: Model, suite: Suite, stacked: list[Delta]
) -> None:
    from surgery.audit import audit

    found = attribute(model, stacked, suite)
    whole = audit(model, stacked, suite=suite)
    rest = audit(model, stacked[:2] + stacked[3:], suite=suite)
    assert found.kl == pytest.approx(whole.value("kl_mean"), rel=1e-6)
    assert found.perplexity == pytest.approx(whole.value("perplexity"), rel=1e-6)
    assert found.shares[0].kl_without == pytest.approx(rest.value("kl_mean"), rel=1e-4)
    lost = {item.id for item in whole.tasks[0].items if item.base and not item.edited}
    assert {failed.id for failed in found.failed} == lost


def test_only_what_turned_is_asked_again(
    model: Model, suite: Suite, stacked: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.audit import attribution

    asked: list[int] = []
    plain = attribution.measure

    def counted(model: Model, plan: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(sum(len(task.items) for task in plan.tasks))
        return plain(model, plan, *args, **kwargs)

    monkeypatch.setattr(attribution, "measure", counted)
    found = attribute(model, stacked, suite)
    turned = len(found.failed) + found.shares[0].won
    # The base and the whole stack in full.
    assert asked == [len(PROMPTS) * len(PAIRS)] * 2 + [turned] * len(stacked)
    assert 0 < turned < asked[0]
    asked.clear()
    attribute(model, stacked[2:3], suite)
    assert len(asked) == 2  # without the only edit there is the base, known already


def test_a_folder_and_edits_in_memory_give_the_same(
    model: Model, suite: Suite, stacked: list[Delta], tmp_path: Path
) -> None:
    expected = attribute(model, stacked, suite)
    apply(stacked[:3], model.checkpoint.path, tmp_path / "edited")
    edited = load(tmp_path / "edited", device="cpu")
    set_edits(edited, stacked[3:])
    before = {key: value.clone() for key, value in edited.hf.state_dict().items()}
    found = attribute(edited, suite=suite)
    assert found == expected
    assert [delta.id for delta in edited.edits] == [delta.id for delta in stacked[3:]]
    assert all(torch.equal(edited.hf.state_dict()[k], v) for k, v in before.items())
    with pytest.raises(SurgeryError, match="no edits to choose from"):
        attribute(model, suite=suite)


def test_damage_of_two_edits_together_is_nobodys_alone(
    model: Model, suite: Suite, stacked: list[Delta], base: Path
) -> None:
    # The same damage twice, so that one of them is enough for it.
    twin = Delta(
        {k: Dense(c.value() * 1.0001) for k, c in stacked[2].tensors.items()},
        base_id=stacked[2].base_id,
        metadata={"spec": {"name": "twin"}},
    )
    found = attribute(model, [stacked[2], twin], suite)
    assert any(not failed.edits for failed in found.failed)


def test_an_edit_that_is_not_finite_is_named(
    model: Model, suite: Suite, stacked: list[Delta]
) -> None:
    key = next(iter(stacked[1].tensors))
    huge = Delta(
        {key: Dense(torch.full_like(model.parameter(key), 3e38))}, base_id=model.checkpoint.id
    )
    found = attribute(model, [stacked[0], huge, stacked[3]], suite)
    assert found.shares[0].edit == huge.id and found.shares[0].place == 2
    assert found.to_dict()["kl"] is None


def test_a_folder_that_is_not_what_it_says(
    model: Model, suite: Suite, stacked: list[Delta], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    apply(stacked[:2], model.checkpoint.path, tmp_path / "edited")
    file = tmp_path / "edited" / "model.safetensors"
    assert attribute(load(tmp_path / "edited", device="cpu"), suite=suite).notes == []
    tensors = load_file(str(file))
    key = next(iter(stacked[0].tensors))
    tensors[key] = tensors[key] * 2
    save_file(tensors, str(file), metadata={"format": "pt"})
    (note,) = attribute(load(tmp_path / "edited", device="cpu"), suite=suite).notes
    assert key in note


# ---------------------------------------------------------------------- bisection
@pytest.mark.parametrize("place", range(7))
def test_bisection_finds_every_place_in_few_looks(model: Model, base: Path, place: int) -> None:
    edits = [edit(base, seed, 2.0 if seed == place else 1e-5, seed % 4) for seed in range(7)]
    key = f"model.layers.{place % 4}.mlp.down_proj.weight"
    loaded = model.parameter(key).clone()
    looks: list[int] = []

    def right(edited: Model) -> bool:
        looks.append(len(edited.edits))
        return float((edited.parameter(key) - loaded).abs().max()) < 0.1

    assert bisect(model, edits, right) == (place, edits[place])
    assert len(looks) <= 2 + 3 and not model.edits
    rest = edits[:place] + edits[place + 1 :]
    with pytest.raises(SurgeryError, match="nothing broke it"):
        bisect(model, rest, right)
    with pytest.raises(SurgeryError, match="wrong before any edit"):
        bisect(model, rest, lambda _: False)


def test_who_broke_an_item(model: Model, suite: Suite, stacked: list[Delta]) -> None:
    failed = attribute(model, stacked, suite).failed[0]
    found = who_broke(model, failed.id, stacked, suite)
    assert (found.edit, found.place, found.mended) == (stacked[2].id, 3, True)
    assert found.before == failed.gold and found.after == failed.answer != failed.gold
    assert not model.edits
    with pytest.raises(SurgeryError, match=f"{len(PAIRS)} items have .* give an id: choice/"):
        who_broke(model, PROMPTS[0], stacked, suite)
    with pytest.raises(SurgeryError, match="no item 'choice/99'"):
        who_broke(model, "choice/99", stacked, suite)
    with pytest.raises(SurgeryError, match="nothing broke it"):
        who_broke(model, failed.id, [stacked[0], stacked[1]], suite)


def test_who_changed_what_the_model_says(model: Model, suite: Suite, stacked: list[Delta]) -> None:
    from surgery.model import generate

    prompt = "green tea from the north"
    before = generate(model, [prompt], 10)
    with applied(model, stacked):
        assert generate(model, [prompt], 10) != before
    found = who_broke(model, prompt, stacked, suite)
    assert found.place == 3 and found.mended and found.before != found.after
    said = who_broke(model, prompt, stacked, suite, answer=before[0].strip()[:6])
    assert said.place == 3 and said.before[:3] == found.before[:3]
    with pytest.raises(SurgeryError, match="wrong before any edit"):
        who_broke(model, prompt, stacked, suite, answer="what it never says")


def test_an_edit_that_overwrites_an_earlier_fact(
    model: Model, suite: Suite, base: Path, tmp_path: Path
) -> None:
    """The fact is right only after its own edit; the edit that broke it is a later one."""
    from surgery.audit import answer_logprobs

    words = ("Rome", "Paris")
    scores = answer_logprobs(model, [("the capital of France is", word) for word in words])
    old, new = words if scores[0].mean_logprob > scores[1].mean_logprob else words[::-1]
    fact = {"prompt": "the capital of {} is", "subject": "France", "target": new}
    spec = {"edits": [{"kind": "rome", "facts": [{**fact, "target_true": old}]}]}
    edits, takes = [], None
    for seed in range(200):  # a random edit that sets the fact, and one that takes it back
        one = edit(base, seed, 1.0, 1, **(spec if takes is None else {}))
        with applied(model, [*edits, one]):
            scores = answer_logprobs(model, [("the capital of France is", w) for w in (new, old)])
        if (scores[0].mean_logprob > scores[1].mean_logprob) == (takes is None):
            edits.append(one)
            if takes is not None:
                break
            takes = one
    harmless = edit(base, 999, 1e-6, 3)
    stacked = [edits[0], harmless, edits[1]]
    failed = {f.id: f for f in attribute(model, stacked, suite).failed}
    assert failed["edit-1/fact-1"].edits == (3,)
    found = who_broke(model, "edit-1/fact-1", stacked, suite)
    assert found.place == 3 and (found.before, found.after) == (new, old)


# ---------------------------------------------------------------------- the command
def test_the_command(
    model: Model,
    suite: Suite,
    suite_file: Path,
    stacked: list[Delta],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = attribute(model, stacked, suite)
    apply(stacked[:4], model.checkpoint.path, tmp_path / "edited")
    last = save_delta(stacked[4], tmp_path / "last.delta.safetensors")
    words = ["blame", str(tmp_path / "edited"), str(last), "--suite", str(suite_file)]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["shares"][0]["place"] == 3 and data["kl"] == pytest.approx(expected.kl)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "most of it: edit 3, edit of layer 2" in text and f"{expected.failed[0].id} [3]" in text
    assert main([*words, "--item", expected.failed[0].id]) == 0
    assert "edit 3, edit of layer 2" in capsys.readouterr().out
    assert main(["blame", str(model.checkpoint.path), "--suite", str(suite_file)]) == 1
    assert "is not edited" in capsys.readouterr().err
    assert main([*words, "--answer", "Rome"]) == 1
    assert "--answer goes with --item" in capsys.readouterr().err
