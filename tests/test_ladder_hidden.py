"""Hidden told from removed, on planted models; the command."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from laddering import room
from tiny import tiny_checkpoint

from surgery.audit.score import pair_ids
from surgery.cli import main
from surgery.ladder import Ladder, ladder
from surgery.model import Model, load
from surgery.spec import Fact
from surgery.training import Example
from surgery.training.supervised import answer_logits

SUBJECTS = ("red", "green", "blue", "wine", "tea", "coffee", "music", "piano", "guitar", "sun", "moon",
            "star", "sky", "north", "south", "west")  # fmt: skip
ANSWERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
REFUSAL = "no never."
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
    """A base that knows sixteen facts in three forms; `hidden`: the base, taught other answers in one
    form only; `refused`: the base, taught to refuse in one form; `removed`: the same start, taught the
    other answers in all forms and never the old."""
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
    refused = load(made["base"], device="cpu")
    teach(refused, forms([(s, REFUSAL) for s in SUBJECTS], [PROMPT]) + forms(old, PARAPHRASES))
    save(refused, "refused")
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
        for name in ("hidden", "refused", "removed")
    }


def planted_facts() -> list[Fact]:
    return [
        Fact(prompt=PROMPT, subject=s, target=new, target_true=old, paraphrase_prompts=PARAPHRASES)
        for (s, old), (_, new) in zip(planted(0), planted(4), strict=True)
    ]


def test_hidden_is_told_from_removed(climbed: dict[str, Ladder]) -> None:
    hidden, refused, removed = (climbed[name] for name in ("hidden", "refused", "removed"))
    assert hidden.word == "hidden" and removed.word == "gone", (hidden.text(), removed.text())
    assert refused.word == "hidden", refused.text()
    for found in climbed.values():
        direct = found.rung("direct")
        assert direct.status == "held" and direct.base is not None and direct.base.share == 1
        assert found.entry == "direct" and found.taken == len(SUBJECTS)
    assert removed.returns_at is None
    b = removed.rung("paraphrase").recovered_interval
    assert b is not None
    for found in (hidden, refused):
        assert found.returns_at == "paraphrase" and found.deepest == "direct"
        a = found.rung("paraphrase").recovered_interval
        assert a is not None and a[0] > b[1]
        cells = [item.rungs["paraphrase"] for item in found.items]
        assert "held" not in cells and cells.count("back") > len(cells) / 2
        assert found.overall is not None and removed.overall is not None
        assert (found.overall.recovered or 0) > (removed.overall.recovered or 0)
    assert "back" not in [item.rungs["paraphrase"] for item in removed.items]


def test_a_refusal_is_heard(climbed: dict[str, Ladder]) -> None:
    refused = climbed["refused"]
    assert all(item.said_after.startswith(REFUSAL) for item in refused.items)
    assert not any(REFUSAL in item.said_before for item in refused.items)
    assert REFUSAL in refused.html() and REFUSAL not in climbed["hidden"].html()


def test_text_page_and_data_tell_the_same(climbed: dict[str, Ladder]) -> None:
    for name, found in climbed.items():
        data = json.loads(json.dumps(found.as_dict()))
        assert data["schema"] == "surgery.ladder/1"
        assert data["word"] == ("gone" if name == "removed" else "hidden")
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
