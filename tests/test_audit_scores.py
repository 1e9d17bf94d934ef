"""The audit's numbers against a few lines of plain transformers code."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from auditing import TEXTS, rank_one
from tiny import tiny_checkpoint

from surgery.audit import answer_logprobs
from surgery.audit.general import divergences, passages, perplexity, text_states
from surgery.audit.head import Head
from surgery.model import Model, load
from surgery.model.hooks import first
from surgery.stack import applied

pytestmark = pytest.mark.usefixtures("own_cache")


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
