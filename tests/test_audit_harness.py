"""Our task scores against lm-evaluation-harness on the same items."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_checkpoint

from surgery.audit.suite import Suite, TaskPart
from surgery.audit.tasks import read_task, run_tasks
from surgery.delta import Delta
from surgery.model import load
from surgery.stack import applied

WORDS = "red green blue old new small large good bad north south wine tea music piano".split()


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    rows = [
        {
            "query": f"the {WORDS[i % 15]} {WORDS[(3 * i + 1) % 15]} is",
            "choices": [
                WORDS[(i + k * 4) % 15] + (" sun moon" if k == 1 else "") for k in range(4)
            ],
            "gold": i % 4,
        }
        for i in range(24)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return Suite.model_construct(name="s", folder=str(tmp_path))


@pytest.mark.filterwarnings("ignore")  # the harness's own dependencies warn about each other
def test_choices_are_scored_as_the_harness_scores_them(tmp_path: Path, suite: Suite) -> None:
    model = load(tiny_checkpoint(tmp_path, "llama"), device="cpu")
    ours = TaskPart(name="ours", kind="choice", file="items.jsonl", options={"suffix": "\nAnswer:"})
    theirs = TaskPart(name="theirs", kind="harness", file="items.jsonl")
    found = run_tasks(model, [read_task(suite, ours), read_task(suite, theirs)])
    assert [o.right for o in found["ours"]] == [o.right for o in found["theirs"]]
    assert [o.answer for o in found["ours"]] == [o.answer for o in found["theirs"]]
    assert 0 < sum(o.right for o in found["ours"]) < 24


@pytest.mark.filterwarnings("ignore")
def test_the_harness_does_not_tie_an_untied_head(tmp_path: Path, suite: Suite) -> None:
    model = load(tiny_checkpoint(tmp_path, "llama"), device="cpu")
    assert model.tied
    task = read_task(suite, TaskPart(name="theirs", kind="harness", file="items.jsonl", items=4))
    with applied(model, Delta({}, base_id=model.checkpoint.id, untie=True)):
        assert not model.tied
        run_tasks(model, [task])
        assert not model.tied
    assert model.tied
