"""`surgery run`: solve, audit, apply, and the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commanding import SPEC, call

from surgery.cli import main


def run_words(place: Path, out: Path, *more: Any) -> list[str]:
    words = ["run", place / "spec.yaml", "--base", place / "base", "-o", out]
    return [*map(str, words), "--suite", str(place / "suite.yaml"), *map(str, more)]


def test_run_leaves_a_checkpoint_with_everything(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    import surgery
    from surgery.delta import load_delta

    out = tmp_path / "deep" / "out"
    code, data, _ = call(capsys, *run_words(place, out))
    assert code == 0 and data["verdict"] in ("accept", "warn", "reject")
    assert [file.name for file in tmp_path.iterdir()] == ["deep"]
    for name in ("report.html", "report.json", "spec.yaml", "surgery.json", "README.md"):
        assert (out / name).is_file()
    [answer] = [one for one in data["answers"] if one["kind"] == "direct"]
    assert answer["prompt"] == "The capital of France is"

    # The folder is what the delta in it makes of the base in memory.
    model = surgery.load(place / "base")
    delta = load_delta(data["written"]["delta"])
    ids = torch.tensor([[5, 9, 40, 12]])
    with torch.no_grad():
        bare = model.hf(ids).logits
        with surgery.applied(model, delta):
            wanted = model.hf(ids).logits
        folder = AutoModelForCausalLM.from_pretrained(out)(ids).logits
    assert torch.equal(folder, wanted) and not torch.allclose(folder, bare)

    # What lies beside the weights says the same.
    record = json.loads((out / "surgery.json").read_text())
    assert record["edits"][0]["id"] == data["delta_id"] == delta.id
    assert record["audit"]["verdict"] == data["verdict"]
    assert data["verdict"] in (out / "README.md").read_text()
    again = surgery.solve(surgery.EditSpec.load(out / "spec.yaml"), model)
    assert again.id == delta.id


def test_run_prints_before_and_after_within_the_terminal(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert main(run_words(place, tmp_path / "out")) == 0
    out = capsys.readouterr().out
    for wanted in ("before", "after", "sham", "» The capital of France is", "perplexity", "KL on"):
        assert wanted in out
    paths = str(tmp_path)
    assert max(len(line) for line in out.splitlines() if paths not in line) <= 72


def test_the_gate_keeps_a_rejected_edit_out(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = tmp_path / "strict.yaml"
    strict.write_text(SPEC + "checks:\n  limits: {kl_mean: 0.0000001}\n")
    words = ["run", strict, "--base", place / "base", "--suite", place / "suite.yaml"]
    code, data, _ = call(capsys, *words, "-o", tmp_path / "out", "--gate")
    assert code == 3 and data["verdict"] == "reject"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.delta.safetensors", "out.report.html", "out.report.json", "strict.yaml",
    ]  # fmt: skip
    # Without the gate it is written, and says so.
    code, data, _ = call(capsys, *words, "-o", tmp_path / "out")
    assert code == 0 and data["verdict"] == "reject" and (tmp_path / "out").is_dir()


def test_run_refuses_what_is_there_before_it_works(
    place: Path, edited: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import surgery.model

    monkeypatch.setattr(surgery.model, "load", lambda *a, **k: pytest.fail("loaded"))
    assert main(run_words(place, edited)) == 1
    assert "already exists" in capsys.readouterr().err
