"""Second moments: right, additive, kept by content, and taken up after an interruption."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import WORDS

from surgery.delta import LowRank
from surgery.errors import SurgeryError
from surgery.methods.solved import as_delta, weight_key
from surgery.model import tokenize
from surgery.stack import applied
from surgery.statistics import Moment, MomentFitter, collect, read_passages
from surgery.statistics.text import shuffled

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def text(tmp_path):
    """Forty passages of different lengths."""
    g = torch.Generator().manual_seed(0)
    passages = []
    for number in range(40):
        words = torch.randint(len(WORDS), (3 + number,), generator=g)
        passages.append(" ".join(WORDS[i] for i in words))
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(passages))
    return file


def plain_moment(model, layer: int, rows: list[list[int]]) -> torch.Tensor:
    """X^T X / n of the down projection's inputs, one text at a time, unpadded, in float64."""
    seen: list[torch.Tensor] = []
    hook = model.mlp_out(layer).register_forward_pre_hook(lambda _m, a: seen.append(a[0][0]))
    with torch.no_grad():
        for row in rows:
            model.hf(torch.tensor([row]))
    hook.remove()
    x = torch.cat(seen).double()
    return x.T @ x / len(x)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_equals_the_plain_computation(tiny_model, text, family):
    """All layers from one pass, in padded batches, with the padding left out."""
    model = tiny_model(family)
    found = collect(model, [0, 3], text, tokens=10**6)
    rows = [tokenize(model, passage) for passage in read_passages(text)]
    assert found.record["tokens"] == found.moments[0].count == sum(len(row) for row in rows)
    for layer in (0, 3):
        expected = plain_moment(model, layer, rows)
        torch.testing.assert_close(
            found.moments[layer].mean.double(), expected, rtol=1e-4, atol=1e-5
        )


def test_only_as_many_tokens_as_asked(tiny_model, text):
    model = tiny_model("llama")
    assert collect(model, [1], text, tokens=100).moments[1].count == 100
    # The first hundred tokens of the mixed passages, not of the file.
    rows, left = [], 100
    for passage in shuffled(read_passages(text)):
        rows.append(tokenize(model, passage)[:left])
        left -= len(rows[-1])
        if not left:
            break
    torch.testing.assert_close(
        collect(model, [1], text, tokens=100).moments[1].mean.double(),
        plain_moment(model, 1, rows),
        rtol=1e-4,
        atol=1e-5,
    )


def test_they_add_up():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 8, generator=g), torch.randn(50, 8, generator=g)

    def moment(*parts: torch.Tensor) -> Moment:
        fitter = MomentFitter(8, torch.device("cpu"))
        for part in parts:
            fitter.update(part)
        return fitter.fit()

    total = moment(x) + moment(y)
    assert total.count == 80
    torch.testing.assert_close(total.mean.float(), moment(x, y).mean)
    both = torch.cat([x, y]).double()
    torch.testing.assert_close(total.mean, both.T @ both / 80, rtol=1e-5, atol=1e-6)


def test_report_of_a_known_spectrum():
    report = Moment(torch.diag(torch.tensor([4.0, 1.0, 1.0, 0.0])), 10).report()
    assert report["largest"] == 4 and report["smallest"] == 0 and report["width"] == 4
    share = torch.tensor([4, 1, 1]) / 6
    assert report["effective_rank"] == pytest.approx(float((-(share * share.log()).sum()).exp()))


def counting(monkeypatch, stop_after: int | None = None, batch_tokens: int = 128) -> list[int]:
    """Counts the batches that are run, and cuts the pass short after some of them."""
    import importlib

    module = importlib.import_module("surgery.statistics.collect")
    real, runs = module._run, []

    def run(model, fitters, rows):
        if stop_after is not None and len(runs) == stop_after:
            raise KeyboardInterrupt
        runs.append(len(rows))
        real(model, fitters, rows)

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(module, "BATCH_TOKENS", batch_tokens)
    return runs


def test_an_interrupted_pass_goes_on_where_it_stopped(tiny_model, text, monkeypatch):
    model = tiny_model("llama")
    with monkeypatch.context() as patch:
        whole = counting(patch)
        expected = collect(model, [1, 2], text, tokens=900, use_store=False).moments
    with monkeypatch.context() as patch:
        before = counting(patch, stop_after=3)
        with pytest.raises(KeyboardInterrupt):
            collect(model, [1, 2], text, tokens=900)
    with monkeypatch.context() as patch:
        after = counting(patch)
        found = collect(model, [1, 2], text, tokens=900).moments
    assert len(before) == 3 and before + after == whole
    for layer in (1, 2):
        assert torch.equal(found[layer].mean, expected[layer].mean)
        assert found[layer].count == expected[layer].count == 900


def test_a_pass_taken_up_with_batches_of_another_size_is_right_all_the_same(
    tiny_model, text, monkeypatch
):
    model = tiny_model("llama")
    expected = collect(model, [1], text, tokens=900, use_store=False).moments[1]
    with monkeypatch.context() as patch:
        counting(patch, stop_after=3)
        with pytest.raises(KeyboardInterrupt):
            collect(model, [1], text, tokens=900)
    with monkeypatch.context() as patch:
        counting(patch, batch_tokens=300)
        found = collect(model, [1], text, tokens=900).moments[1]
    assert found.count == expected.count == 900
    torch.testing.assert_close(found.mean, expected.mean)


def test_the_store_is_used_for_the_same_and_for_nothing_else(
    tiny_model, text, tmp_path, monkeypatch
):
    model = tiny_model("llama")
    runs = counting(monkeypatch)

    def computed(*args, **kwargs) -> bool:
        runs.clear()
        collect(*args, **kwargs)
        return bool(runs)

    assert computed(model, [1], text, tokens=200)
    assert not computed(model, [1], text, tokens=200)
    copy = tmp_path / "same words elsewhere.txt"
    copy.write_text(text.read_text())
    assert not computed(model, [1], copy, tokens=200)
    assert computed(model, [1, 2], text, tokens=200)  # layer 2 is new
    assert computed(model, [1], text, tokens=201)
    assert computed(tiny_model("llama", seed=1), [1], text, tokens=200)  # another base, same tokens
    copy.write_text(text.read_text() + "\n\nmore of it")
    assert computed(model, [1], copy, tokens=10**6)
    assert computed(model, [1], text, tokens=10**6)


def test_they_are_of_the_base_whatever_edits_the_model_has(tiny_model, text):
    model = tiny_model("llama")
    expected = collect(model, [2], text, tokens=200, use_store=False).moments[2].mean
    change = LowRank(A=torch.ones(1, 48), B=torch.ones(32, 1))
    with applied(model, as_delta(model, {weight_key(model, 0): change})):
        again = collect(model, [2], text, tokens=200, use_store=False).moments[2].mean
        rows = [tokenize(model, p) for p in shuffled(read_passages(text))]
        edited = plain_moment(model, 2, rows)
    assert torch.equal(again, expected)
    assert not torch.allclose(edited.float(), expected, rtol=0.1)


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b"])
def test_line_ends_of_unicode_inside_a_row_do_not_end_it(tmp_path, end):
    texts = [f"one{end}line", "two"]
    rows = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    (tmp_path / "a.jsonl").write_text(rows, encoding="utf-8")
    assert read_passages(tmp_path / "a.jsonl") == texts


def test_texts_from_files_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("one\nline two\n\n\n\nthree\n", newline="\r\n")
    (tmp_path / "b.jsonl").write_text('{"text": "four"}\n\n{"other": 1}\n')
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert read_passages(tmp_path) == ["one\nline two", "three", "four"]
    for bad, word in (("nowhere", "no text"), ("c.bin", "cannot read")):
        with pytest.raises(SurgeryError, match=word):
            read_passages(tmp_path / bad)
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n{')
    with pytest.raises(SurgeryError, match=r"d\.jsonl, line 2 is not JSON"):
        read_passages(tmp_path / "d.jsonl")
    (tmp_path / "e.txt").write_text(" \n\n")
    with pytest.raises(SurgeryError, match="holds no text"):
        read_passages(tmp_path / "e.txt")
