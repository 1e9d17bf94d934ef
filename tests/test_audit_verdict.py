"""Tasks compared, verdicts and reports of the audit, on plain data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from surgery.audit.asked import declared
from surgery.audit.facts import records
from surgery.audit.report import (
    FactRecord,
    Figure,
    Question,
    Report,
    Side,
    TaskResult,
    TensorChange,
    Verdict,
)
from surgery.audit.suite import TaskPart
from surgery.audit.table import table
from surgery.audit.tasks.items import Item, Task
from surgery.audit.tasks.results import compare, floor
from surgery.audit.tasks.running import Outcome
from surgery.audit.verdict import LIMITS, decide
from surgery.errors import SurgeryError
from surgery.measure.paired import mcnemar
from surgery.model import Said
from surgery.spec import Fact


# ---------------------------------------------------------------------- tasks and verdicts
def _task(count: int = 40, group: str | None = None) -> Task:
    items = [
        Item(f"t/{i}", f"q{i}", ("a", "b"), 0, f"g{i % 4}" if group else None) for i in range(count)
    ]
    return Task(TaskPart(name="facts", kind="facts", file="x"), items)


def _outcomes(right: list[bool]) -> list[Outcome]:
    return [Outcome(r, "a" if r else "b") for r in right]


def fact(prompt: str, subject: str, target: str, **fields: object) -> tuple[str, Fact]:
    content = {"prompt": prompt, "subject": subject, "target": target, **fields}
    return "rome", Fact.model_validate(content)


def test_items_that_ask_for_what_the_edit_changes_are_no_damage() -> None:
    task = Task(
        TaskPart(name="facts", kind="facts", file="x"),
        [
            Item("facts/1", "The capital of France is", ("Paris", "Bern")),
            Item("facts/2", "The currency of France is the", ("franc", "euro"), 1),
            Item("facts/3", "The capital of Francesca is", ("Paris", "Bern")),
            Item("facts/4", "The capital of Norway is", ("Oslo", "Bern")),
        ],
    )
    made = records(
        [fact("{} has the capital", "France", "Rome", target_true=" Paris")], lambda _: {}
    )
    assert declared([task], made) == {"facts/1"}
    sides = _outcomes([True] * 4), _outcomes([False, True, True, True])
    (result,) = compare([task], {"facts": sides[0]}, {"facts": sides[1]}, None, {"facts/1"})
    assert (result.n, result.lost, [i.id[-1] for i in result.items]) == (3, 0, ["2", "3", "4"])
    made[0].earlier = True  # the base has it already
    assert not declared([task], made)


def test_compare_counts_flips_and_corrects() -> None:
    base = [i % 5 != 0 for i in range(40)]
    edited = [b and i >= 16 for i, b in enumerate(base)]
    (result,) = compare([_task()], {"facts": _outcomes(base)}, {"facts": _outcomes(edited)})
    assert result.lost == sum(base[:16]) and result.gained == 0
    assert result.p == pytest.approx(mcnemar(result.lost, 0)) == result.p_holm
    assert result.change == pytest.approx(result.edited - result.base)
    assert result.interval is not None and result.interval[1] < 0
    assert result.measurable and len(result.items) == 40
    same = compare([_task()], {"facts": _outcomes(base)}, {"facts": _outcomes(base)})[0]
    assert (same.lost, same.gained, same.p, same.change) == (0, 0, 1.0, 0.0)


def test_a_base_at_chance_is_not_ranked() -> None:
    assert "at chance" in floor(20, 40, 0.5)
    assert floor(35, 40, 0.5) == ""
    assert "only 1 of 40" in floor(1, 40, 0.0)
    base = _outcomes([i % 2 == 0 for i in range(40)])
    lost = _outcomes([False] * 40)
    (result,) = compare([_task()], {"facts": base}, {"facts": lost})
    assert not result.measurable
    assert decide(_report(tasks=[result])).decision == "accept"


def _report(**fields: object) -> Report:
    content = {
        "suite": "quick",
        "base": Side(),
        "edited": Side(),
        "verdict": Verdict(decision="accept", reason=""),
        **fields,
    }
    return Report.model_validate(content)


def _kl(value: float) -> Figure:
    return Figure(name="kl_mean", label="KL", base=0.0, edited=value, change=value)


def test_verdict_names_the_limit() -> None:
    assert decide(_report(figures=[_kl(0.001)])).decision == "accept"
    assert decide(_report(figures=[_kl(0.001)]), {"kl_mean": 0.0005}).decision == "reject"
    far = decide(_report(figures=[_kl(3.0)]))
    assert far.decision == "reject" and "KL" in far.reason and "3" in far.reason
    assert decide(_report(figures=[_kl(math.nan)])).decision == "reject"
    with pytest.raises(SurgeryError, match="unknown limit"):
        decide(_report(), {"nonsense": 1.0})


def test_a_limit_on_tasks_that_somebody_set_is_held_to_the_letter() -> None:
    """A small task that lost a lot hides behind no large one that surely lost a little."""

    def task(name: str, n: int, lost: int, p: float) -> TaskResult:
        return TaskResult(
            name=name, label=name, kind="choice", n=n, chance=0.5, base=0.9, edited=0.9 - lost / n,
            change=-lost / n, lost=lost, p=p, p_holm=min(1.0, 2 * p),
        )  # fmt: skip

    report = _report(tasks=[task("sure", 1000, 20, 1e-6), task("unsure", 20, 3, 0.25)])
    assert decide(report).decision == "accept"
    strict = decide(report, {"task_drop": 0.05})
    assert strict.decision == "reject" and "unsure: 90 % right before, 75 % now" in strict.reason
    assert decide(report, {"task_drop": 0.2}).decision == "accept"
    worse = _report(tasks=[task("sure", 1000, 110, 1e-9), task("unsure", 20, 3, 0.25)])
    found = decide(worse)
    assert found.decision == "reject" and found.reason.startswith("sure: 90 % right before")


def test_verdict_says_what_in_the_weights_did_it() -> None:
    doubled = [
        TensorChange(
            key=f"model.layers.7.mlp.{n}.weight", shape=[1], dtype="F32", norm=1.0, scale=2
        )
        for n in ("up_proj", "down_proj")
    ]
    verdict = decide(_report(figures=[_kl(2.0)], weights=doubled))
    assert "2 tensors of model.layers.7.mlp were multiplied by 2.00" in verdict.reason
    zero = [TensorChange(key="model.layers.7.o", shape=[1], dtype="F32", norm=1.0, scale=0.0)]
    assert "model.layers.7.o was zeroed" in decide(_report(figures=[_kl(2.0)], weights=zero)).reason


def _lost_in(groups: dict[str, int], each: int = 20, known: int = 18) -> TaskResult:
    """A facts task in which so many of the known facts of each relation are lost."""
    names = [f"g{i}" for i in range(4)]
    items = [Item(f"t/{n}/{i}", "q", ("a", "b"), 0, n) for n in names for i in range(each)]
    task = Task(TaskPart(name="facts", kind="facts", file="x", group="g"), items)
    base = [i < known for _ in names for i in range(each)]
    edited = [groups.get(n, 0) <= i < known for n in names for i in range(each)]
    sides = {"facts": _outcomes(base)}, {"facts": _outcomes(edited)}
    return compare([task], *sides)[0]


@pytest.mark.parametrize(
    ("lost", "found"),
    [
        ({"g1": 18}, "reject"),
        ({"g1": 12, "g0": 1, "g3": 2}, "reject"),
        ({"g1": 7}, "warn"),
        ({"g1": 2}, None),  # too few
        ({"g0": 17, "g1": 18, "g2": 18, "g3": 16}, None),  # everything is lost, not one relation
        ({"g0": 3, "g1": 4, "g2": 2, "g3": 3}, None),
    ],
)
def test_verdict_finds_the_relation_that_was_overwritten(
    lost: dict[str, int], found: str | None
) -> None:
    verdict = decide(_report(tasks=[_lost_in(lost)], figures=[_kl(0.5)]))
    findings = [f for f in verdict.findings if f["name"] == "relation"]
    assert [f["level"] for f in findings] == ([found] if found else [])
    if found == "reject":
        assert verdict.reason.startswith("facts of one relation are overwritten")
        assert f"{lost['g1']} of the 18 about g1" in verdict.reason
    assert verdict.decision == "reject"  # for its KL, if for nothing else
    assert set(LIMITS) >= {"kl_mean", "neighborhood_drop"}


def _near(count: int, lost: int, third: bool = False) -> list[FactRecord]:
    """Neighbours of a fact, some of which now have the edit's answer or a third one."""
    questions = []
    for number in range(count):
        gone = number < lost
        new, old = (0.1, 0.2) if not gone else ((0.01, 0.02) if third else (0.9, 0.01))
        questions.append(
            Question(
                kind="neighbour", prompt=f"The capital of N{number} is", new="Rome", old="Bern",
                base_new=0.1, base_old=0.5, base_greedy=True,
                edited_new=new, edited_old=old, edited_greedy=not gone,
            )
        )  # fmt: skip
    return [FactRecord(prompt="{}", subject="X", new="Rome", old="Oslo", questions=questions)]


@pytest.mark.parametrize("third", [False, True])
def test_verdict_names_the_neighbours_that_were_overwritten(third: bool) -> None:
    from surgery.audit.facts import figures

    facts = _near(10, 9, third)
    near = [*figures(facts), _kl(0.5)]
    weights = [TensorChange(key="model.layers.7.x", shape=[1], dtype="F32", norm=0.2)]
    report = _report(facts=facts, figures=near, weights=weights, tasks=[_lost_in({"g0": 1})])
    reason = decide(report).reason
    assert reason.startswith("neighbouring facts") and "90 %" in reason
    assert "“The capital of N0 is”" in reason and ("Rome" in reason) != third
    assert "model.layers.7" not in reason  # the size of the change explains nothing here
    assert "1 of 10 neighbouring facts that it knew keep their own answer" in report.html()
    # The same losses under a doubled layer are the layer's.
    weights = [TensorChange(key="model.layers.7.x", shape=[1], dtype="F32", norm=1.0, scale=2.0)]
    reason = decide(report.model_copy(update={"weights": weights})).reason
    assert "model.layers.7.x was multiplied by 2.00" in reason
    kept = _near(10, 1, third)
    assert decide(_report(facts=kept, figures=figures(kept))).decision != "reject"


def test_a_report_of_an_older_or_poorer_kind_can_be_read() -> None:
    content = {
        "schema_version": "report/1",
        "suite": "quick",
        "base": {},
        "edited": {},
        "verdict": {"decision": "warn", "reason": "x"},
        "a_field_of_the_future": 1,
    }
    report = Report.from_json(json.dumps(content))
    assert table(report).startswith("WARNING: x")
    page = report.html()
    assert page.startswith("<!doctype html>") and "With reservations" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "<script" not in page


def test_reports_side_by_side(tmp_path: Path) -> None:
    from surgery.audit.beside import beside, beside_data

    one = _report(figures=[_kl(0.001)], edited=Side(edits=[{"name": "first"}]), suite_id="a")
    two = _report(figures=[_kl(0.25)], edited=Side(edits=[{"name": "second"}]), suite_id="b")
    text = beside([one, two])
    assert "first" in text and "0.0010" in text and "0.2500" in text
    assert "different suites" in text
    data = beside_data([one, two])
    assert [r["figures"]["kl_mean"]["edited"] for r in data["reports"]] == [0.001, 0.25]
    assert len({r["name"] for r in beside_data([one, one], ["x.json", "y.json"])["reports"]}) == 2


def test_free_text_figures() -> None:
    from surgery.audit.freetext import entropy, free_text_figures, repetition

    assert repetition("one two three four five six") == 0.0
    assert repetition("a b c a b c a b c") == pytest.approx(1 - 3 / 7)
    assert entropy(["a b", "c d"]) == pytest.approx(2.0)
    assert entropy([""]) == 0.0
    figures = {
        f.name: f
        for f in free_text_figures(
            {"p": Said("a b c d", True), "q": Said("x y", True)},
            {"p": Said("a a a a a", False), "q": Said("", True)},
            {"p": 0.5, "q": 1.0},
            {"p": 4.0},
        )
    }
    assert figures["surprise"].change == 3.5
    assert figures["silence"].edited == 0.5
    assert (figures["truncated"].base, figures["truncated"].edited) == (0.0, 0.5)
    assert figures["entropy"].change is not None and figures["entropy"].change < 0
    far = decide(_report(figures=[figures["surprise"]]))
    assert far.decision == "reject" and "surprise" in far.reason


def test_the_limits_in_the_documentation_are_the_defaults() -> None:
    text = (Path(__file__).parent.parent / "docs" / "gate.md").read_text(encoding="utf-8")
    for name, limit in LIMITS.items():
        bounds = [
            "never" if math.isinf(bound)
            else f"{100 * bound:g} %" if limit.unit == "%" else f"{bound:g}{limit.unit}"
            for bound in (limit.warn, limit.reject)
        ]  # fmt: skip
        assert f"| `{name}` | {limit.what} | {bounds[0]} | {bounds[1]} |" in text
