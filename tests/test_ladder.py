"""The rungs on every family, identity, exact restore."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from laddering import ALL, capitals, room, same, weights
from tiny import FAMILIES, random_delta, tiny_checkpoint

from surgery.audit.head import Head
from surgery.audit.score import answer_logprobs
from surgery.checkpoint import Checkpoint
from surgery.compare.dialogue import first_sentence
from surgery.delta import Delta, LowRank
from surgery.errors import SurgeryError
from surgery.ladder import FAMILIES as RUNGS
from surgery.ladder import Family, Item, Setting, halves, items_of, ladder
from surgery.ladder.asking import margins
from surgery.ladder.judge import OPEN
from surgery.ladder.rungs.direction import moved
from surgery.ladder.rungs.probe import fit, readers
from surgery.ladder.rungs.rounding import pruned
from surgery.ladder.said import with_rivals
from surgery.ladder.states import states, subject_ends
from surgery.model import Model, generate, load
from surgery.stack import Lineage


# ---------------------------------------------------------------------- the rungs
@pytest.mark.parametrize("family", FAMILIES)
def test_margins_are_the_scores_of_the_answers(
    family: str, tiny_model: Callable[..., Model], monkeypatch: Any
) -> None:
    """Prompts of several lengths in one batch, answers of one token and of many, in several rounds."""
    from surgery.ladder import scoring

    monkeypatch.setattr(scoring, "_ROWS", 3)
    model = tiny_model(family)
    answers = ("Paris", "Rome", "red wine", "Klingon")
    prompts = (
        "the capital of France is",
        "is",
        "who spoken by people known for music and piano in the",
    )
    *found, nothing = margins(model, [*([(p, answers)] for p in prompts), []])
    for one, prompt in zip(found, prompts, strict=True):
        scored = [s.mean_logprob for s in answer_logprobs(model, [(prompt, a) for a in answers])]
        assert one.margin == pytest.approx(scored[0] - max(scored[1:]), abs=1e-4)
    assert nothing.margin is None and nothing.knows is None


def test_turns_go_through_the_chat_template(tmp_path: Path, monkeypatch: Any) -> None:
    import surgery.ladder.rungs.pushback as pushback
    from surgery.ladder.rungs.questions import begin_answer

    model = load(tiny_checkpoint(tmp_path, "llama", **room("llama")), device="cpu")
    model.tokenizer.chat_template = (
        "<s>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    )
    items = items_of(capitals(), model)
    (begun,) = begin_answer(model, items, Setting()).values()
    said: list[list[Any]] = []
    monkeypatch.setattr(
        pushback, "margins", lambda m, forms: said.append(forms) or margins(m, forms)
    )
    turns = pushback.push_back(model, items, Setting())
    assert all(math.isfinite(s.margin or math.nan) for row in (begun, *turns.values()) for s in row)
    doubt, insistence = (forms[0][0][0] for forms in said)
    question, begun = "What is the capital of France?", "The capital of France is"
    opening = f"<s>user: {question}\nassistant: {begun} Rome.\nuser: "
    assert doubt == (
        f"<s>user: {question}\nassistant: The answer is Rome.\n"
        "user: Are you sure?\nassistant: Let me think again.\n"
        f"user: That was not right. {question}\nassistant: {begun}"
    )
    assert insistence.startswith(opening) and "says that it is Paris" in insistence


def test_texts_too_long_for_the_model_are_left_out(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("gpt2")
    (found,) = margins(model, [[("z" * 200, ("Paris", "Rome"))]])
    assert found.margin is None


def test_states_are_those_of_the_blocks(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("qwen2")
    texts = ["the capital of France is", "wine and tea"]
    found = states(model, texts)
    for row, text in zip(found, texts, strict=True):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        hidden = model.hf(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in range(model.n_layers - 1):  # the last one is behind the final norm
            assert torch.allclose(row[layer], hidden[layer + 1][0, -1], atol=1e-5)
        logits = Head.of(model).logits(model.final_norm(row[-1]))
        assert torch.allclose(logits, model.hf(input_ids=ids).logits[0, -1], atol=1e-4)
    item = Item("The capital of {} is", "France", "a", "b", ())
    assert subject_ends([item]) == ["The capital of France"]


def test_moved_finds_a_planted_direction() -> None:
    g = torch.Generator().manual_seed(0)
    before = torch.randn(6, 3, 8, generator=g)
    shift = torch.randn(8, generator=g)
    after = before.clone()
    after[:, 1] += shift
    (found,) = moved((before, before), (after, before))
    assert torch.allclose(found, shift / shift.norm(), atol=1e-5)


def test_probe_recovers_a_linear_map_and_picks_the_layer() -> None:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 2, 6, generator=g, dtype=torch.float64)
    target = hidden[:, 1] @ torch.randn(6, 5, generator=g, dtype=torch.float64)
    reader = fit(hidden[:30], target[:30])
    found = reader.read(hidden[30:])
    assert reader.layer == 1
    wanted = target[30:] - target[:30].mean(0)
    close = torch.cosine_similarity(found, wanted, dim=-1)
    assert float(close.min()) > 0.95


def test_pruning_zeroes_the_smallest_weights(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("gpt2")
    before = weights(model)
    weight = model.mlp_out(0).weight
    assert isinstance(weight, torch.Tensor)
    original = weight.detach().clone()
    with pruned(model, 0.3):
        gone = weight == 0
        assert float(gone.float().mean()) == pytest.approx(0.3, abs=0.01)
        assert original[gone].abs().max() <= original[~gone].abs().min()
        assert torch.equal(weight[~gone], original[~gone])
    assert same(model, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_rung_runs_on_every_family_and_restores(family: str, tmp_path: Path) -> None:
    model = load(tiny_checkpoint(tmp_path, family, **room(family)), device="cpu")
    items = items_of(capitals(), model)
    before = weights(model)
    vector = torch.nn.functional.normalize(torch.randn(model.hidden_size), dim=0)
    fold = halves(items)
    probes = readers(model, items, fold)
    assert same(model, before)
    setting = Setting(fold, (vector,), probes, steps=(1, 2), quick=True)
    plain = {}
    for group in RUNGS:
        first = group.climb(model, items, setting)
        assert same(model, before), group.rungs
        again = group.climb(model, items, setting)
        for name, scores in first.items():
            assert len(scores) == len(items) and all(s.margin is not None for s in scores), name
            assert all(math.isfinite(s.margin or 0) for s in scores), name
            assert scores == again[name], name
            plain[name] = [s.margin for s in scores]
    # What changes the model changes what it says.
    for name in ("direction", "pruned", "int4", "relearn1", "relearn2"):
        assert plain[name] != plain["direct"], name
    assert not any(module._forward_hooks for module in model.hf.modules())


def test_weights_are_restored_when_a_rung_fails(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("llama")
    before = weights(model)
    with pytest.raises(RuntimeError, match="planted"), pruned(model):
        raise RuntimeError("planted")
    assert same(model, before)


def test_lens_rank_and_margin(tiny_model: Callable[..., Model]) -> None:
    from surgery.ladder.rungs.lens import read_layers

    model = tiny_model("llama")
    (item,) = items_of(capitals()[:1], model)
    (score,) = read_layers(model, [item], Setting())["lens"]
    # The tiny tokenizer gives the space a token of its own, so answers part at their second one.
    layers = states(model, [item.text + " "])[0][model.n_layers // 2 :]
    logits = Head.of(model).logits(model.final_norm(layers))
    ids = {a: model.tokenizer(" " + a)["input_ids"] for a in item.answers}
    token = {a: found[1] for a, found in ids.items() if found[0] == ids[item.old][0]}
    assert {item.old, item.new} <= set(token)
    old = logits[:, token[item.old]]
    ranks = (logits > old[:, None]).sum(-1) + 1
    assert score.rank == int(ranks.min())
    rivals = logits[:, [t for a, t in token.items() if t != token[item.old]]]
    assert score.margin == pytest.approx(float((old - rivals.amax(-1)).max()), abs=1e-5)


# ---------------------------------------------------------------------- identity and the whole climb
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_identity_edit_measures_the_same_on_every_rung(family: str, tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, family, **room(family))
    model = load(path, device="cpu")
    before = weights(model)
    nothing = zero_delta(Checkpoint.open(path))
    # Without the rungs that ask openly, nobody notices that there is nothing to climb for.
    attacks = [name for name in ALL if name not in OPEN]
    found = ladder(model, nothing, capitals(), quick=True, rungs=attacks)
    assert same(model, before) and model.edits == []
    assert [rung.name for rung in found.rungs] == [n for n in attacks if n != "relearn100"]
    for rung in found.rungs:
        assert rung.margins["base"] == rung.margins["edited"], rung.name
        assert rung.n > 0, rung.name
    assert found.word in ("hidden", "unclear", "untold") and found.entry is None


def test_nothing_is_climbed_for_what_was_not_taken_away(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, "llama", **room("llama"))
    found = ladder(path, path, capitals(), quick=True)
    assert [rung.name for rung in found.rungs] == list(OPEN)
    assert found.taken == 0 and not any(item.taken for item in found.items)
    assert all(item.said_before == item.said_after for item in found.items)
    assert found.word in ("unchanged", "unclear", "untold") and "not changed" in found.text()
    assert found.notes == []


def zero_delta(checkpoint: Checkpoint) -> Delta:
    key = next(
        k for k in checkpoint.tensors if k.endswith(("mlp.down_proj.weight", "mlp.c_proj.weight"))
    )
    rows, columns = checkpoint.tensors[key].shape
    lineage = Lineage.of(checkpoint)
    return Delta(
        {key: LowRank(A=torch.zeros(1, columns), B=torch.zeros(rows, 1))},
        base_id=lineage.base_id,
        base_hashes={key: lineage.original_hash(key)},
        metadata={"spec": {"name": "nothing"}},
    )


def test_an_edit_is_seen_and_the_model_left_alone(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, "llama", **room("llama"))
    model = load(path, device="cpu")
    before = weights(model)
    keys = ["model.layers.1.mlp.down_proj.weight"]
    delta = random_delta(Checkpoint.open(path), keys, size=0.2)
    found = ladder(model, delta, capitals(), rungs=["direct", "direction", "int8"], quick=True)
    assert same(model, before)
    assert [rung.name for rung in found.rungs] == ["direct", "direction", "int8"]
    direct = found.rung("direct")
    assert direct.margins["base"] != direct.margins["edited"]
    # The direction is there, and cutting it out changes what the edited model says.
    assert found.rung("direction").margins["edited"] != direct.margins["edited"]


def test_unknown_rung_is_refused(tiny_model: Callable[..., Model]) -> None:
    with pytest.raises(SurgeryError, match="no rung 'handstand'"):
        ladder(tiny_model("llama"), "nowhere", capitals(), rungs=["handstand"])


def test_what_is_said_instead_competes(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("llama")
    items = items_of(capitals()[:1], model)

    def heard(before: str, after: str) -> tuple[str, ...]:
        return with_rivals(model, items, [(before, "")], [(after, "")])[0].instead

    (own,) = generate(model, [items[0].text], max_new_tokens=8)
    for text in (own := first_sentence(own, 8), "no wine for tea."):
        ((form,),) = [[(items[0].text, ("Paris", text))]]
        behind = (margins(model, [[form]])[0].margin or 0.0) > 0
        assert behind == (text != own)
        # What the base would rather say itself does not count.
        assert heard("Paris", text) == ((text,) if behind else ())
    # Nor does what the base says as well, and what names an answer that competes already.
    assert heard("no wine for tea.", "no wine for tea.") == ()
    assert heard("Paris", "in Rome, they say.") == ()
    rival = replace(items[0], instead=("no wine.",))
    assert rival.answers == (*rival.options, "no wine.") and "no wine." not in rival.options


def test_a_climb_that_was_killed_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    import surgery.ladder.climb as climb

    path = tiny_checkpoint(tmp_path, "llama", **room("llama"))
    delta = random_delta(Checkpoint.open(path), ["model.layers.1.mlp.down_proj.weight"], size=0.2)
    names = ["paraphrase", "int8", "direction"]
    asked: list[str] = []

    def counted(dies_at: str | None) -> Any:
        def one(family: Family) -> Family:
            def go(model: Model, items: Sequence[Item], setting: Setting) -> Any:
                asked.extend(family.rungs)
                if dies_at in family.rungs and model.edits:
                    raise KeyboardInterrupt
                return family.climb(model, items, setting)

            return replace(family, climb=go)

        return tuple(one(family) for family in RUNGS)

    plain = ladder(path, delta, capitals(), rungs=names, cache=False).as_dict()
    monkeypatch.setattr(climb, "FAMILIES", counted("int8"))
    with pytest.raises(KeyboardInterrupt):
        ladder(path, delta, capitals(), rungs=names)
    asked.clear()
    monkeypatch.setattr(climb, "FAMILIES", counted(None))
    assert ladder(path, delta, capitals(), rungs=names).as_dict() == plain
    assert "paraphrase" not in asked  # base and edited had been asked before
    asked.clear()
    assert ladder(path, delta, capitals(), rungs=names).as_dict() == plain
    assert asked.count("paraphrase") == 4  # the base's side stays: edited and three sets of twins
