"""The ready-made specs show what they say they show, on the real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import surgery
from surgery import resources
from surgery.model import chat, generate

EDITS = resources.path("edits")
EXPECTED: dict[str, Any] = YAML(typ="safe").load(EDITS / "expected.yaml")
# Only what the expectations are about: whole audits have their own tests.
SUITE = """
name: of the edits
texts:
  - {kind: encyclopedia, file: benchmarks/text/encyclopedia.txt, passages: 4, tokens: 64}
  - {kind: conversation, file: benchmarks/text/conversation.txt, passages: 4, tokens: 64}
  - {kind: stories, file: benchmarks/text/stories.txt, passages: 4, tokens: 64}
edit: {neighbours: 8, plus: false, generations: 0}
controls: {identity: false, sham: 0}
"""


def specs() -> list[str]:
    return sorted(path.stem for path in EDITS.glob("*.yaml") if path.name != "expected.yaml")


def test_every_spec_has_an_expectation_and_is_described() -> None:
    assert sorted(EXPECTED) == specs()
    readme = (EDITS / "README.md").read_text()
    for name in specs():
        assert f"`{name}.yaml`" in readme
        head = (EDITS / f"{name}.yaml").read_text()
        assert "Must show" in head[: head.index("version: 1")]


@pytest.mark.parametrize("name", specs())
def test_spec_loads(name: str) -> None:
    spec = surgery.EditSpec.load(EDITS / f"{name}.yaml")
    assert spec.name
    again = surgery.EditSpec.parse(spec.to_yaml())
    assert again.id == spec.id
    for part in spec.edits:
        for fact in getattr(part, "facts", []):
            # A neighbour that has the new answer already says nothing about damage.
            assert fact.target not in fact.neighborhood_targets
            assert len(fact.neighborhood_targets) == len(fact.neighborhood_prompts) > 0
            assert fact.paraphrase_prompts and fact.target_true


@pytest.fixture(scope="module")
def solved(rome_paris: surgery.Delta) -> dict[str, surgery.Delta]:
    """Deltas by the name of their spec; filled as they are needed."""
    return {"rome_paris": rome_paris}


def solve(name: str, model: surgery.Model, solved: dict[str, Any], folder: Path) -> Any:
    """The delta of a spec, those it includes solved first."""
    from surgery.delta import save_delta

    if name not in solved:
        text = (EDITS / f"{name}.yaml").read_text()
        for needed in EXPECTED[name].get("needs", []):
            file = folder / f"{needed}.delta.safetensors"
            save_delta(solve(needed, model, solved, folder), file)
            text = text.replace(f"../out/{file.name}", str(file))
        spec = surgery.EditSpec.parse(text).resolved(EDITS)
        solved[name] = surgery.solve(spec, model)
    return solved[name]


def said(model: surgery.Model, asked: list[dict[str, Any]]) -> list[str]:
    texts = [chat(model, one["chat"]) if "chat" in one else one["prompt"] for one in asked]
    return generate(model, texts, max_new_tokens=24)


@pytest.mark.slow
@pytest.mark.parametrize("name", specs())
def test_spec_shows_its_outcome(
    name: str, real_model: surgery.Model, solved: dict[str, Any], tmp_path: Path
) -> None:
    wanted, model = EXPECTED[name], real_model
    delta = solve(name, model, solved, tmp_path)
    before = said(model, wanted["answers"])
    with surgery.applied(model, delta):
        after = said(model, wanted["answers"])
    for asked, old, new in zip(wanted["answers"], before, after, strict=True):
        for state, text in (("before", old), ("after", new)):
            if state in asked:
                assert asked[state].casefold() in text.casefold(), (asked, old, new)
        if "never" in asked:
            assert asked["never"].casefold() not in new.casefold(), (asked, old, new)
    if not any("after" in asked and "before" in asked for asked in wanted["answers"]):
        assert before != after

    (tmp_path / "suite.yaml").write_text(SUITE)
    report = surgery.audit(base=model, edited=delta, suite=tmp_path / "suite.yaml")
    for figure, limits in wanted["figures"].items():
        value = report.value(figure)
        assert value is not None, figure
        assert limits.get("least", value) <= value <= limits.get("most", value), (figure, value)
