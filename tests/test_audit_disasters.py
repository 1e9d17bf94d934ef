"""Planted disasters must be rejected, each for what it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from surgery.audit import Suite, audit
from surgery.delta import Delta, Dense
from surgery.model import Model
from surgery.resources import path
from surgery.spec import EditSpec
from surgery.stack import apply

TEXT = "\n\n".join(
    f"the {a} of {b} is {c} and the music of {b} is known by people in the north"
    for a in ("capital", "language", "river")
    for b in ("France", "Japan", "Spain", "Italy")
    for c in ("old", "red")
)


def layer_times(model: Model, layer: int, factor: float, outputs: bool = False) -> Delta:
    """All tensors of a layer times a factor, or only those that write its output."""
    table = model.architecture
    prefix = f"{table.layer(layer)}."
    names = [name for name, _ in model.hf.named_parameters() if name.startswith(prefix)]
    if outputs:
        outs = (table.mlp_out_module(layer), table.attention_out_module(layer))
        names = [name for name in names if name.rpartition(".")[0] in outs]
    keys = [model.stored_key(name) for name in names]
    return Delta(
        {key: Dense(model.parameter(key).detach() * (factor - 1)) for key in keys},
        base_id=model.checkpoint.id,
    )


@pytest.fixture
def suite(tmp_path: Path, own_cache: Path) -> Suite:
    (tmp_path / "text.txt").write_text(TEXT)
    content = {"name": "tiny", "texts": [{"kind": "words", "file": "text.txt"}]}
    return Suite.model_validate({**content, "folder": str(tmp_path)})


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize(
    ("factor", "outputs", "said"),
    [
        (2.0, False, r"\d+ tensors of {layer} were multiplied by 2\.00"),
        (0.0, True, r"\d tensors of {layer} were zeroed"),
    ],
)
def test_a_layer_doubled_or_silenced(
    tiny_model: Callable[..., Model],
    suite: Suite,
    tmp_path: Path,
    family: str,
    factor: float,
    outputs: bool,
    said: str,
) -> None:
    model = tiny_model(family)
    delta = layer_times(model, 2, factor, outputs)
    layer = re.escape(model.architecture.layer(2).removeprefix("transformer."))
    verdict = audit(model, delta, suite=suite).verdict
    assert verdict.decision == "reject"
    assert re.search(said.format(layer=rf"\S*{layer}"), verdict.reason), verdict.reason
    if family == "llama":  # as a folder that nobody made a record of
        apply([delta], model.checkpoint.path, tmp_path / "edited")
        for name in ("surgery.json", "README.md"):
            (tmp_path / "edited" / name).unlink()
        found = audit(model.checkpoint.path, tmp_path / "edited", suite=suite).verdict
        assert found.decision == "reject"
        assert re.search(said.format(layer=rf"\S*{layer}"), found.reason), found.reason


# ---------------------------------------------------------------------- the real model
@pytest.fixture
def small() -> Suite:
    """A little of everything that `quick` asks of an edit, without its controls."""
    suite = Suite.load("quick", items=2)
    tasks = [part.model_copy(update={"tokens": min(part.tokens, 8)}) for part in suite.tasks]
    edit = suite.edit.model_copy(update={"plus": False, "generations": 4})
    controls = suite.controls.model_copy(update={"identity": False, "sham": 0})
    return suite.model_copy(
        update={"tasks": tasks, "edit": edit, "controls": controls, "answers": []}
    )


@pytest.mark.slow
def test_a_real_layer_doubled_or_silenced(real_model: Model, small: Suite) -> None:
    model = real_model
    for delta, said in (
        (layer_times(model, 12, 2.0), "9 tensors of model.layers.12 were multiplied by 2.00"),
        (layer_times(model, 20, 0.0, outputs=True), "2 tensors of model.layers.20 were zeroed"),
    ):
        verdict = audit(model, delta, suite=small).verdict
        assert verdict.decision == "reject" and said in verdict.reason


@pytest.mark.slow
def test_neighbours_that_are_overwritten_beside_one_claimed_fact(
    real_model: Model, small: Suite
) -> None:
    """The edit says that it moves one fact, and its weights move others of the relation too."""
    from surgery import solve

    model = real_model
    text = path("benchmarks", "tasks", "facts.jsonl").read_text(encoding="utf-8")
    rows = [r for r in map(json.loads, text.splitlines()) if r["relation"] == "official_language"]
    facts = [
        {"prompt": r["prompt"], "subject": r["subject"], "target": "Finnish",
         "target_true": r["answer"]}
        for r in rows[:6]
    ]  # fmt: skip
    memit = {"kind": "memit", "facts": facts, "contexts": 0}
    delta = solve(EditSpec.model_validate({"edits": [memit]}), model)
    near = {
        "neighborhood_prompts": [f["prompt"].replace("{}", f["subject"]) for f in facts[1:]],
        "neighborhood_targets": [f["target_true"] for f in facts[1:]],
    }
    only_facts = small.model_copy(update={"tasks": []})  # what else it breaks is asked once
    for claimed, suite in ((facts[0], small), ({**facts[0], **near}, only_facts)):
        spec = EditSpec.model_validate({"edits": [{"kind": "memit", "facts": [claimed]}]})
        verdict = audit(model, delta, spec, suite).verdict
        assert verdict.decision == "reject"
        assert verdict.reason.startswith("neighbouring facts")
        assert "“The official language of" in verdict.reason and "Finnish" in verdict.reason
    claims_all = audit(model, delta, suite=only_facts).verdict
    assert not claims_all.reason.startswith("neighbouring facts")


@pytest.mark.slow
def test_a_random_edit_is_judged_by_its_damage(real_model: Model, small: Suite) -> None:
    """One of the size of a real ROME edit is accepted; blown up, it is warned about or rejected exactly
    when a figure is beyond its limit."""
    from surgery.audit.controls import sham
    from surgery.audit.verdict import LIMITS
    from surgery.delta import LowRank

    model = real_model
    key = model.stored_key(f"{model.architecture.mlp_out_module(5)}.weight")
    weight = model.parameter(key)
    like = LowRank(torch.ones(1, weight.shape[1]), torch.ones(weight.shape[0], 1))
    seen = []
    for size in (0.17, 3.0):  # 0.17 of the matrix's length: what `edits/rome_paris.yaml` changes
        change = like.scaled(size * float(weight.norm()) / like.norm())
        random = sham(Delta({key: change}, base_id=model.checkpoint.id))
        report = audit(model, random, suite=small)
        values = {
            name: limit.value(report) for name, limit in LIMITS.items() if name != "task_drop"
        }
        beyond = {n for n, v in values.items() if v is not None and not v <= LIMITS[n].warn}
        found = {f["name"] for f in report.verdict.findings} - {"task_drop", "relation"}
        assert found == beyond
        assert (report.verdict.decision == "accept") == (not report.verdict.findings)
        seen.append(report.verdict.decision)
    assert seen[0] == "accept" and seen[1] != "accept"
