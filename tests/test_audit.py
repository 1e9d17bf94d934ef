"""The audit's figures against a few lines of plain transformers code, and its controls."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_checkpoint

from surgery.audit import Report, answer_logprobs, audit
from surgery.audit.controls import identity, sham
from surgery.audit.general import divergences, passages, perplexity, text_states
from surgery.audit.head import Head
from surgery.audit.suite import Suite, TaskPart, TextPart
from surgery.delta import Delta, Dense, LowRank
from surgery.errors import SurgeryError
from surgery.model import Model, load
from surgery.model.hooks import first
from surgery.stack import applied, apply

TEXTS = [
    "the capital of France is Paris and the river is old",
    "music is known by people in the north",
    "one two three four five six seven eight nine ten",
    "wine and tea and coffee",
]
KEY = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(tiny_checkpoint(tmp_path, "llama"), device="cpu")


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "text.txt").write_text("\n\n".join(TEXTS))
    (folder / "choice.jsonl").write_text(
        "\n".join(
            f'{{"query": "the {a} is", "choices": ["{b}", "{c}"], "gold": {g}}}'
            for a, b, c, g in (
                ("wine", "red", "green", 0),
                ("sun", "old", "new", 1),
                ("star", "blue", "small", 0),
                ("piano", "north", "south", 1),
            )
        )
    )
    return Suite(
        name="tiny",
        texts=[TextPart(kind="words", file="text.txt", tokens=64)],
        tasks=[TaskPart(name="choice", kind="choice", file="choice.jsonl")],
        folder=str(folder),
    )


def rank_one(model: Model, size: float = 0.5, key: str = KEY, facts: bool = True) -> Delta:
    weight = model.parameter(key)
    generator = torch.Generator().manual_seed(3)
    change = LowRank(
        torch.randn(1, weight.shape[1], generator=generator),
        torch.randn(weight.shape[0], 1, generator=generator),
    )
    spec = {
        "edits": [
            {
                "kind": "rome",
                "facts": [
                    {
                        "prompt": "the capital of {} is",
                        "subject": "France",
                        "target": "Rome",
                        "target_true": "Paris",
                        "paraphrase_prompts": ["what is the capital of {}"],
                        "neighborhood_prompts": ["the capital of Japan is"],
                        "neighborhood_targets": ["Tokyo"],
                    }
                ],
            }
        ]
    }
    scaled = change.scaled(size * float(weight.norm()) / change.norm())
    return Delta(
        {key: scaled}, base_id=model.checkpoint.id, metadata={"spec": spec} if facts else {}
    )


# ---------------------------------------------------------------------- scoring
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3"])
@torch.no_grad()
def test_scores_are_those_of_plain_transformers(tmp_path: Path, family: str) -> None:
    model = load(tiny_checkpoint(tmp_path, family), device="cpu")
    prompts = ["the capital of France is", "the capital", "wine"]
    answers = ["Paris", "Rome", "Paris Rome Tokyo", "Madrid xyz"]
    pairs = [(p, a) for p in prompts for a in answers]
    found = answer_logprobs(model, pairs)
    for (prompt, answer), score in zip(pairs, found, strict=True):
        head = model.tokenizer(prompt)["input_ids"]
        ids = model.tokenizer(prompt + " " + answer)["input_ids"]
        logits = model.hf(torch.tensor([ids])).logits[0, len(head) - 1 : -1]
        wanted = torch.tensor(ids[len(head) :])
        expected = logits.log_softmax(-1)[torch.arange(len(wanted)), wanted]
        assert score.tokens == len(wanted)
        assert score.total == pytest.approx(float(expected.sum()), abs=1e-4)
        assert score.mean_logprob == pytest.approx(float(expected.mean()), abs=1e-4)
        assert score.greedy == bool((logits.argmax(-1) == wanted).all())


@torch.no_grad()
def test_the_greedy_answer_is_greedy(model: Model) -> None:
    prompt = "the capital of France is"
    ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
    token = int(model.hf(ids).logits[0, -1].argmax())
    from surgery.audit.score import score_ids

    best, other = score_ids(model, [(ids[0].tolist(), [token]), (ids[0].tolist(), [token + 1])])
    assert best.greedy and not other.greedy
    assert best.mean_logprob > other.mean_logprob


def test_an_empty_prompt_scores_the_whole_sentence(model: Model) -> None:
    (score,) = answer_logprobs(model, [("", "the sun is old")], join=False)
    ids = [0, *model.tokenizer("the sun is old")["input_ids"]]
    with torch.no_grad():
        logprobs = model.hf(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = sum(float(logprobs[i, token]) for i, token in enumerate(ids[1:]))
    assert score.total == pytest.approx(expected, abs=1e-4)


# ---------------------------------------------------------------------- unrelated text
@torch.no_grad()
def test_kl_and_perplexity_are_those_of_plain_transformers(model: Model) -> None:
    texts = passages(model, "words", TEXTS, 64)
    before = text_states(model, texts)
    head = Head.of(model)
    plain = []
    with applied(model, rank_one(model)):
        after = text_states(model, texts)
        for text in texts:
            plain.append(model.hf(torch.tensor([text.ids])).logits[0, :-1].double())
    base_nll, [gap] = divergences(texts, before, head, [(after, head)])
    assert torch.equal(divergences(texts, before, head, [(before, head)])[0], base_nll)
    kl, agree, nll = [], [], []
    for text, changed in zip(texts, plain, strict=True):
        p = model.hf(torch.tensor([text.ids])).logits[0, :-1].double().log_softmax(-1)
        q = changed.log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(-1))
        agree.append(p.argmax(-1) == q.argmax(-1))
        nll.append(-q[torch.arange(len(q)), torch.tensor(text.ids[1:])])
    expected = torch.cat(kl)
    assert float(expected.mean()) > 1e-3
    assert torch.allclose(gap.kl.double(), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(gap.agree, torch.cat(agree))
    assert perplexity(gap.nll) == pytest.approx(math.exp(float(torch.cat(nll).mean())), rel=1e-5)


@torch.no_grad()
def test_hidden_norms_are_of_each_layers_output(model: Model) -> None:
    texts = passages(model, "words", TEXTS, 64)
    states = text_states(model, texts)
    outputs: list[torch.Tensor] = []
    for text in texts:
        seen: list[torch.Tensor] = []
        handles = [
            layer.register_forward_hook(lambda _m, _i, o, seen=seen: seen.append(first(o)))
            for layer in model.layers
        ]
        model.hf(torch.tensor([text.ids]))
        for handle in handles:
            handle.remove()
        outputs.append(torch.stack(seen)[:, 0, :-1].norm(dim=-1))
    assert torch.allclose(states.norms, torch.cat(outputs, dim=1), rtol=1e-4)


# ---------------------------------------------------------------------- the whole
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
    expected = _plain_kl(model, delta)
    assert report.value("kl_mean") == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def _plain_kl(model: Model, delta: Delta) -> float:
    rows = [torch.tensor([model.tokenizer(text)["input_ids"][:64]]) for text in TEXTS]
    before = [model.hf(row).logits[0, :-1].double().log_softmax(-1) for row in rows]
    with applied(model, delta):
        after = [model.hf(row).logits[0, :-1].double().log_softmax(-1) for row in rows]
    kl = [(p.exp() * (p - q)).sum(-1) for p, q in zip(before, after, strict=True)]
    return float(torch.cat(kl).mean())


def test_report_of_a_delta(model: Model, suite: Suite) -> None:
    delta = rank_one(model)
    before = {key: value.clone() for key, value in model.hf.state_dict().items()}
    report = audit(model, delta, suite=suite)
    assert all(torch.equal(model.hf.state_dict()[key], value) for key, value in before.items())
    assert report.value("kl_mean") == pytest.approx(_plain_kl(model, delta), rel=1e-3)
    assert (report.figure("kl_mean").sham or 0.0) > 0
    (change,) = report.weights
    assert change.key == KEY and change.rank == 1 and change.declared
    assert change.norm == pytest.approx(0.5, rel=1e-3)
    (fact,) = report.facts
    assert [q.kind for q in fact.questions] == [
        "direct", "paraphrase", "neighbour", "neighbour_plus",
    ]  # fmt: skip
    (score,) = answer_logprobs(model, [("the capital of France is", "Paris")])
    assert fact.questions[0].base_old == pytest.approx(score.probability, rel=1e-5)
    with applied(model, delta):
        (score,) = answer_logprobs(model, [("the capital of Japan is", "Tokyo")])
    assert fact.questions[2].edited_old == pytest.approx(score.probability, rel=1e-5)
    assert fact.questions[3].prompt == "the capital of France is Rome. the capital of Japan is"
    assert fact.questions[0].said_before is not None


def test_the_folder_and_the_delta_give_the_same_figures(
    model: Model, suite: Suite, tmp_path: Path
) -> None:
    delta = rank_one(model)
    apply([delta], model.checkpoint.path, tmp_path / "edited")
    one = audit(model, delta, suite=suite)
    two = audit(model.checkpoint.path, tmp_path / "edited", suite=suite)
    assert [f.model_dump() for f in one.figures] == [f.model_dump() for f in two.figures]
    assert two.edited.edits[0]["id"] == delta.id


def test_a_folder_changed_behind_our_back_is_read_as_it_is(
    model: Model, suite: Suite, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    delta = rank_one(model, size=0.01)
    apply([delta], model.checkpoint.path, tmp_path / "edited")
    file = tmp_path / "edited" / "model.safetensors"
    tensors = load_file(str(file))
    other = "model.layers.2.mlp.down_proj.weight"
    tensors[other] = tensors[other] * 2
    save_file(tensors, str(file), metadata={"format": "pt"})
    report = audit(model.checkpoint.path, tmp_path / "edited", suite=suite)
    assert {c.key for c in report.weights if not c.declared} == {other}
    assert report.verdict.decision == "reject"
    assert report.value("kl_mean") > 2 * audit(model, delta, suite=suite).value("kl_mean")  # type: ignore[operator]


def test_a_figure_that_is_not_finite_is_rejected_and_still_json(model: Model, suite: Suite) -> None:
    huge = Delta(
        {KEY: Dense(torch.full_like(model.parameter(KEY), 3e38))}, base_id=model.checkpoint.id
    )
    report = audit(model, huge, suite=suite)
    assert report.verdict.decision == "reject" and "not finite" in report.verdict.reason
    again = Report.from_json(report.to_json())
    assert again.verdict.decision == "reject"
    assert again.text()


def test_report_round_trip_and_schema(model: Model, suite: Suite) -> None:
    report = audit(model, rank_one(model), suite=suite)
    again = Report.from_json(report.to_json())
    assert again == report
    assert again.text() == report.text()
    assert "sham edit" in report.text()
    with pytest.raises(SurgeryError, match="report/99"):
        Report.from_json(report.to_json().replace("report/1", "report/99"))
    with pytest.raises(SurgeryError, match="not an audit report"):
        Report.from_json("{}")
    with pytest.raises(SurgeryError, match="not JSON"):
        Report.from_json("nonsense")


def test_limits_are_enforced_and_unknown_ones_refused(model: Model, suite: Suite) -> None:
    delta = rank_one(model, size=0.01, facts=False)
    kl = audit(model, delta, suite=suite).value("kl_mean")
    assert kl is not None and kl > 0
    refused = audit(model, delta, suite=suite, limits={"kl_mean": kl / 2})
    assert refused.verdict.decision == "reject" and "KL" in refused.verdict.reason
    assert audit(model, delta, suite=suite, limits={"kl_mean": kl * 2}).verdict.findings == [
        f for f in refused.verdict.findings if f["name"] != "kl_mean"
    ]
    with pytest.raises(SurgeryError, match="unknown limit 'kl_maen'"):
        audit(model, delta, suite=suite, limits={"kl_maen": 1.0})


def test_the_base_is_measured_once(
    model: Model, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = audit(model, rank_one(model), suite=suite)
    asked = _watch(monkeypatch)
    second = audit(model, rank_one(model), suite=suite)
    assert second.figures == first.figures
    assert asked and not [label for label in asked if label.startswith("base")]
    anew = audit(model, rank_one(model), suite=suite, cache=False)
    assert anew.figures == first.figures
    assert [label for label in asked if label.startswith("base")]


def _watch(monkeypatch: pytest.MonkeyPatch, stop: str | None = None) -> list[str]:
    """The labels of everything a model is asked; `stop`: what kills the audit when it comes up."""
    from surgery.audit import facts, measure

    labels: list[str] = []

    def watched(module: object, name: str, place: int) -> None:
        real = getattr(module, name)

        def ask(*args: Any, **kwargs: Any) -> Any:
            label = kwargs.get("label") or args[place]
            labels.append(label)
            if label == stop:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, ask)

    watched(measure, "text_states", 2)
    watched(measure, "run_tasks", 2)
    watched(measure, "say", 99)
    watched(facts, "score", 2)
    watched(facts, "speak", 2)
    return labels


@pytest.mark.parametrize("stop", ["edited: choice", "sham: facts", "sham: more"])
def test_an_audit_that_was_killed_goes_on_where_it_was(
    model: Model, suite: Suite, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    more = TaskPart(name="more", kind="choice", file="choice.jsonl", options={"suffix": " very"})
    part = suite.controls.model_copy(update={"sham": 2, "reload": ["int8"]})
    whole = suite.model_copy(
        update={"tasks": [*suite.tasks, more], "controls": part, "answers": ["the sun"]}
    )
    delta = rank_one(model)
    expected = audit(model, delta, suite=whole, cache=False)

    with monkeypatch.context() as patched:
        before = _watch(patched, stop)
        with pytest.raises(KeyboardInterrupt):
            audit(model, delta, suite=whole)
    assert not model.edits  # the kill left the model as it was
    with monkeypatch.context() as patched:
        after = _watch(patched)
        found = audit(model, delta, suite=whole)
    assert after[0] == stop and set(before) & set(after) <= {stop, "sham: texts", "sham: facts"}
    assert found.figures == expected.figures and found.tasks == expected.tasks
    kept = list(Path(os.environ["SURGERY_CACHE"]).glob("audit/unfinished/*"))
    assert not kept  # nothing is left of an audit that is done


@torch.no_grad()
def test_surprise_is_the_bases_nll_of_the_answer(model: Model) -> None:
    from surgery.audit.freetext import surprise
    from surgery.model import chat

    found = surprise(model, {"what is the capital": " Paris and Rome", "where": "  "})
    prompt = model.tokenizer(chat(model, "what is the capital"))["input_ids"]
    ids = prompt + model.tokenizer(" Paris and Rome")["input_ids"]
    logits = model.hf(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[len(prompt) :]))
    assert found == {"what is the capital": pytest.approx(float(expected), abs=1e-4)}


# ---------------------------------------------------------------------- controls
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


# ---------------------------------------------------------------------- who did it
def test_leaving_one_out_and_bisection_find_the_edit(model: Model, suite: Suite) -> None:
    from surgery.audit.attribution import bisect, leave_one_out

    small = [
        rank_one(model, 0.001, f"model.layers.{i}.mlp.down_proj.weight", facts=False)
        for i in (0, 1, 3)
    ]
    large = rank_one(model, 3.0, "model.layers.2.mlp.down_proj.weight", facts=False)
    stack = [small[0], small[1], large, small[2]]
    shares = leave_one_out(model, stack, suite)
    assert shares[0].edit == large.id and shares[0].kl > 100 * abs(shares[1].kl)
    assert not model.edits
    prompt = [("the capital of France is", "Paris")]
    (before,) = answer_logprobs(model, prompt)

    def same(edited: Model) -> bool:
        (now,) = answer_logprobs(edited, prompt)
        return abs(now.mean_logprob - before.mean_logprob) < 0.05

    assert bisect(model, stack, same) == (2, large)
    with pytest.raises(SurgeryError, match="nothing broke it"):
        bisect(model, small, same)


# ---------------------------------------------------------------------- coarser copies
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
