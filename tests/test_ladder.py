"""The ladder: every rung on every family, identity, exact restore, and hidden told from removed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, random_delta, tiny_checkpoint

from surgery.audit.head import Head
from surgery.audit.score import answer_logprobs, pair_ids
from surgery.checkpoint import Checkpoint
from surgery.cli import main
from surgery.delta import Delta, LowRank
from surgery.errors import SurgeryError
from surgery.ladder import FAMILIES as RUNGS
from surgery.ladder import Item, Ladder, Score, Setting, halves, items_of, ladder, twins
from surgery.ladder.asking import margins
from surgery.ladder.interval import difference, wilson
from surgery.ladder.judge import Measured, by_item, judge
from surgery.ladder.relations import LANGUAGES, relation_of, relations, translated
from surgery.ladder.rungs.direction import moved
from surgery.ladder.rungs.probe import _predict
from surgery.ladder.rungs.questions import _abroad
from surgery.ladder.rungs.rounding import pruned
from surgery.ladder.states import states, subject_ends
from surgery.model import Model, load
from surgery.spec import Fact
from surgery.stack import Lineage
from surgery.training import Example
from surgery.training.supervised import answer_logits

# Prompts with hints and turns are long when every letter is a token.
LONG = 768
ALL = [name for family in RUNGS for name in family.rungs]


def room(family: str) -> dict[str, Any]:
    return {"n_positions": LONG} if family == "gpt2" else {"max_position_embeddings": LONG}


def capitals() -> list[Fact]:
    rows = [("France", "Rome", "Paris"), ("Japan", "Paris", "Tokyo"), ("Spain", "Berlin", "Madrid"),
            ("Italy", "Tokyo", "Rome")]  # fmt: skip
    return [
        Fact(prompt="The capital of {} is", subject=s, target=new, target_true=old,
             paraphrase_prompts=("the city people know in {} is",))
        for s, new, old in rows
    ]  # fmt: skip


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.hf.named_parameters()}


def same(model: Model, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())


# ---------------------------------------------------------------------- items and data
def test_items_and_twins(tiny_model: Callable[..., Model]) -> None:
    items = items_of(capitals(), tiny_model("llama"))
    first = items[0]
    assert (first.old, first.new, first.text) == ("Paris", "Rome", "The capital of France is")
    assert first.relation is not None and first.relation.name == "capital"
    assert len(first.alternatives) == 4 and not {"Paris", "Rome"} & set(first.alternatives)
    answers = {answer for _, answer in first.others}
    assert answers and not {"Paris", "Rome"} & answers
    # No hint is about a subject that is itself tested.
    assert not any(f.subject in prompt for f in capitals() for prompt, _ in first.others)
    made = twins(items, 3)
    subjects = {twin.subject for row in made for twin in row}
    assert len(subjects) == 12 and not subjects & {item.subject for item in items}
    assert all(
        twin.answers == item.answers and twin.template == item.template and twin.twin
        for row in made
        for twin, item in zip(row, items, strict=True)
    )
    assert made == twins(items, 3)


def test_one_subject_has_one_twin_and_one_half() -> None:
    def about(subject: str, place: int) -> Item:
        return Item(f"{place} {{}}", subject, "a", "b", ())

    items = [about(s, i) for i, s in enumerate("ABCDABCD")]
    row = twins(items, 1)[0]
    assert [t.subject for t in row[:4]] == [t.subject for t in row[4:]]
    fold = halves(items, 3)
    assert fold[:4] == fold[4:] and sorted(fold[:4]) == [0, 0, 1, 1]


def test_enough_twins_for_many_items() -> None:
    items = [Item("{} is", f"S{i}", "a", "b", ()) for i in range(60)]
    names = [t.subject for row in twins(items, 3) for t in row]
    assert len(set(names)) == 180


def test_forgotten_fact_has_no_new_answer(tiny_model: Callable[..., Model]) -> None:
    fact = Fact(
        prompt="The capital of {} is", subject="France", target="Paris", target_true="Paris"
    )
    item = items_of([fact], tiny_model("llama"))[0]
    assert item.new is None and item.answers[0] == "Paris" and len(item.answers) > 1


def test_nothing_to_compare_with_is_said(tiny_model: Callable[..., Model]) -> None:
    fact = Fact(prompt="{} likes", subject="France", target="tea", target_true="tea")
    with pytest.raises(SurgeryError, match="nothing competes"):
        items_of([fact], tiny_model("llama"))
    with pytest.raises(SurgeryError, match="no facts"):
        items_of([], tiny_model("llama"))


def test_relations_are_complete() -> None:
    for relation in relations():
        assert relation.known and set(relation.languages) == set(LANGUAGES)
        for text in (relation.question, *relation.prompts, *relation.languages.values()):
            assert text.count("{}") == 1, text
    found = relation_of("{} is located in the city of")
    assert found is not None and found.name == "landmark_city"
    assert relation_of("{} is fond of") is None
    assert translated("German", "fr", True) == "allemand"
    assert translated("Klingon", "fr", True) is None and translated("Oslo", "fr", False) == "Oslo"


def test_language_forms_translate_words_and_skip_what_they_cannot() -> None:
    relation = relation_of("The official language of {} is")
    item = Item("The official language of {} is", "Peru", "Spanish", "Arabic", ("Thai", "Klingon"),
                relation=relation)  # fmt: skip
    assert _abroad(item)[1] == (
        "Die Amtssprache von Peru ist",
        ("Spanisch", "Arabisch", "Thailändisch"),
    )
    assert _abroad(replace(item, new="Klingon")) == []
    assert _abroad(replace(item, relation=None)) == []


# ---------------------------------------------------------------------- intervals and judgement
def test_wilson_and_newcombe_agree_with_published_examples() -> None:
    # Newcombe (1998), table II, example (a) of method 10: 56/70 - 48/80 = 0.2 [0.0524, 0.3339].
    low, high = difference(56 / 70, 70, 48 / 80, 80)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)
    low, high = wilson(0.0, 10)
    assert low == pytest.approx(0, abs=1e-12) and round(high, 4) == 0.2775
    assert wilson(1.0, 10)[0] == pytest.approx(1 - high)


def measured(base: Sequence[int], edited: Sequence[int], *controls: Sequence[int]) -> Measured:
    def scores(known: Sequence[int]) -> list[Score]:
        return [Score(1.0 if k else -1.0) for k in known]

    return Measured("r", "r", "nats", scores(base), scores(edited), [scores(c) for c in controls])


@pytest.mark.parametrize(
    ("base", "edited", "control", "status"),
    [
        ([1] * 20, [1] * 20, [0] * 20, "back"),
        ([1] * 20, [0] * 20, [0] * 20, "held"),
        ([1] * 40, [1] * 20 + [0] * 20, [0] * 40, "partly"),
        ([1] * 20, [1] * 20, [1] * 20, "silent"),  # whoever knows nothing says the same
        ([1] * 4, [1, 1, 0, 0], [0] * 4, "unclear"),
    ],
)
def test_status(base: list[int], edited: list[int], control: list[int], status: str) -> None:
    (rung,) = judge([measured(base, edited, control)])
    assert rung.status == status
    if status in ("back", "held"):
        assert rung.recovered == (1.0 if status == "back" else 0.0)
    if status == "silent":
        assert rung.recovered is None


def test_by_item_counts_only_rungs_that_tell() -> None:
    item = Item("{}", "s", "a", "b", ())
    rows = [
        replace(measured([1, 1, 1], [0, 1, 1], [0, 0, 1]), name="one"),
        replace(measured([1, 0, 1], [0, 0, 1], [0, 0, 0]), name="two"),
    ]
    a, b, c = by_item([item] * 3, rows)
    assert (a.deepest, a.returns_at, a.share) == ("two", None, 0.0)
    assert (b.deepest, b.returns_at, b.share) == (None, "one", 1.0)
    assert c.rungs == {"one": "untold", "two": "back"} and c.returns_at == "two"


# ---------------------------------------------------------------------- the rungs
def test_margins_are_the_scores_of_the_answers(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("llama")
    forms = [[("the capital of France is", ("Paris", "Rome", "red wine"))], []]
    one, nothing = margins(model, forms)
    scored = [
        s.mean_logprob
        for s in answer_logprobs(model, [(forms[0][0][0], a) for a in forms[0][0][1]])
    ]
    assert one.margin == pytest.approx(scored[0] - max(scored[1:]), abs=1e-6)
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
    opening = "<s>user: What is the capital of France?\nassistant: The answer is Rome.\nuser: "
    assert doubt == opening + "Are you sure? Think again, then answer.\nassistant: The answer is"
    assert insistence.startswith(opening) and "no, it is Paris" in insistence


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
    found = _predict(hidden[:30], target[:30], hidden[30:])
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
    setting = Setting(fold=halves(items), directions=(vector,), steps=(1, 2), quick=True)
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
    layers = states(model, [item.text + " "])[0]
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
    found = ladder(model, nothing, capitals(), quick=True)
    assert same(model, before) and model.edits == []
    assert {rung.name for rung in found.rungs} == set(ALL) - {"relearn100"}
    for rung in found.rungs:
        assert rung.margins["base"] == rung.margins["edited"], rung.name
        assert rung.n > 0, rung.name
    assert found.word in ("unchanged", "unclear", "untold")


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


# ---------------------------------------------------------------------- hidden or removed
SUBJECTS = ("red", "green", "blue", "wine", "tea", "coffee", "music", "piano", "guitar", "sun", "moon",
            "star", "sky", "north", "south", "west")  # fmt: skip
ANSWERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
PROMPT = "the language of {} is"
PARAPHRASES = ("people in {} know the", "what is spoken by {} and it is")


def planted(shift: int) -> list[tuple[str, str]]:
    """Every subject and its answer; another shift, another answer."""
    return [(s, ANSWERS[(3 * i + i // 8 + shift) % 8]) for i, s in enumerate(SUBJECTS)]


def teach(model: Model, texts: list[tuple[str, str]], steps: int = 400) -> None:
    """Full fine-tuning on (prompt, answer) until every prompt is continued so."""
    ids = [pair_ids(model, prompt, answer) for prompt, answer in texts]
    data = [Example(tuple(head), tuple(tail)) for head, tail in ids]
    parameters = list(model.hf.parameters())
    model.hf.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=4e-3)
    loss = torch.tensor(math.inf)
    for _ in range(steps):
        logits, targets = answer_logits(model, data)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 0.02:
            break
    model.hf.requires_grad_(False)
    assert float(loss.detach()) < 0.05


def forms(facts: list[tuple[str, str]], prompts: Sequence[str]) -> list[tuple[str, str]]:
    return [(p.replace("{}", subject), answer) for p in prompts for subject, answer in facts]


@pytest.fixture(scope="module")
def planted_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base that knows sixteen facts in four forms; `hidden`: the base, taught other answers in one
    form only; `removed`: the same start, taught the other answers in all forms and never the old."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("planted")
    start = tiny_checkpoint(folder, "llama", **room("llama"))
    old, new = planted(0), planted(4)
    made: dict[str, Path] = {}

    def save(model: Model, name: str) -> Path:
        model.hf.save_pretrained(folder / name)
        model.tokenizer.save_pretrained(folder / name)
        made[name] = folder / name
        return made[name]

    base = load(start, device="cpu")
    teach(base, forms(old, (PROMPT, *PARAPHRASES)))
    hidden = load(save(base, "base"), device="cpu")
    teach(hidden, forms(new, [PROMPT]) + forms(old, PARAPHRASES))
    save(hidden, "hidden")
    removed = load(start, device="cpu")
    teach(removed, forms(new, (PROMPT, *PARAPHRASES)))
    save(removed, "removed")
    return made


@pytest.fixture(scope="module")
def climbed(planted_models: dict[str, Path]) -> dict[str, Ladder]:
    return {
        name: ladder(
            planted_models["base"], planted_models[name], planted_facts(), quick=True, copies=3
        )
        for name in ("hidden", "removed")
    }


def planted_facts() -> list[Fact]:
    return [
        Fact(prompt=PROMPT, subject=s, target=new, target_true=old, paraphrase_prompts=PARAPHRASES)
        for (s, old), (_, new) in zip(planted(0), planted(4), strict=True)
    ]


def test_hidden_is_told_from_removed(climbed: dict[str, Ladder]) -> None:
    hidden, removed = climbed["hidden"], climbed["removed"]
    assert hidden.word == "hidden" and removed.word == "gone", (hidden.text(), removed.text())
    for found in (hidden, removed):
        assert found.rung("direct").status == "held"
        assert found.rung("direct").base is not None and found.rung("direct").base.share == 1  # type: ignore[union-attr]
    assert hidden.returns_at == "paraphrase" and hidden.deepest == "direct"
    assert removed.returns_at is None
    a = hidden.rung("paraphrase").recovered_interval
    b = removed.rung("paraphrase").recovered_interval
    assert a is not None and b is not None and a[0] > b[1]
    cells = [item.rungs["paraphrase"] for item in hidden.items]
    assert "held" not in cells and cells.count("back") > len(cells) / 2
    assert "back" not in [item.rungs["paraphrase"] for item in removed.items]


def test_text_page_and_data_tell_the_same(climbed: dict[str, Ladder]) -> None:
    for name, found in climbed.items():
        data = json.loads(json.dumps(found.as_dict()))
        assert data["schema"] == "surgery.ladder/1" and data["word"] == name.replace(
            "removed", "gone"
        )
        page, text = found.html(), found.text()
        for rung in found.rungs:
            assert rung.label.replace("“", "“") in page and rung.name in text
        assert "<script" not in page and "http://" not in page.replace(
            "http://www.w3.org/2000/svg", ""
        )
        assert all(item.subject in text for item in found.items)
    assert "Hidden, not gone" in climbed["hidden"].html()


def test_command(planted_models: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text("\n".join(f.model_dump_json(exclude_defaults=True) for f in planted_facts()))
    html = tmp_path / "ladder.html"
    words = ["ladder", str(planted_models["base"]), str(planted_models["hidden"])]
    words += ["--facts", str(facts), "--quick", "--rungs", "direct", "paraphrase", "relearn5"]
    assert main([*words, "--html", str(html), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["word"] == "hidden" and [r["name"] for r in data["rungs"]] == words[-3:]
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main([*words[:4], str(tmp_path / "none.jsonl")]) == 1
    assert "no facts file" in capsys.readouterr().err
    assert main(words[:3]) == 1
    assert "no facts to climb with" in capsys.readouterr().err
