"""What an audit measures once, and takes up again where it was killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from auditing import rank_one

from surgery.audit import audit
from surgery.audit.suite import Suite, TaskPart
from surgery.model import Model

pytestmark = pytest.mark.usefixtures("own_cache")


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
