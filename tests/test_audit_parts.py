"""Statistics, suites, weights, tasks and verdicts of the audit: closed forms and plain data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_checkpoint

from surgery.audit.facts import companions, first_words, says
from surgery.audit.paired import bootstrap, flips, holm, mcnemar
from surgery.audit.report import Figure, Report, Side, TaskResult, TensorChange, Verdict
from surgery.audit.suite import Suite, TaskPart, spread
from surgery.audit.table import table
from surgery.audit.tasks.items import Item, Task, read_task
from surgery.audit.tasks.results import compare, floor
from surgery.audit.tasks.running import Outcome
from surgery.audit.verdict import LIMITS, decide
from surgery.audit.weights import rank, round_to_nearest, weight_changes
from surgery.checkpoint import Checkpoint
from surgery.delta import Dense, LowRank
from surgery.errors import SurgeryError
from surgery.spec import Fact


# ---------------------------------------------------------------------- statistics
def test_flips_count_both_ways() -> None:
    assert flips([True, True, False, False], [True, False, True, False]) == (1, 1)


def test_mcnemar_is_the_exact_binomial() -> None:
    from scipy.stats import binomtest

    for lost, gained in ((0, 0), (1, 0), (5, 0), (8, 2), (3, 3), (40, 60), (110, 71)):
        n = lost + gained
        expected = binomtest(lost, n, 0.5).pvalue if n else 1.0
        assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(5, 0) == 2 / 32
    assert 0 <= mcnemar(3000, 2000) < 1e-40


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_bootstrap_interval_of_a_mean_is_near_the_normal_one() -> None:
    data = np.random.default_rng(1).normal(2.0, 3.0, 400).tolist()
    interval = bootstrap(data)
    assert interval is not None
    error = np.std(data) / math.sqrt(len(data))
    assert interval[0] == pytest.approx(np.mean(data) - 1.96 * error, abs=0.1)
    assert interval[1] == pytest.approx(np.mean(data) + 1.96 * error, abs=0.1)
    assert bootstrap([1.0]) is None
    assert bootstrap([1.0, math.nan]) is None
    assert bootstrap([0.0] * 5) == (0.0, 0.0)
    assert bootstrap([0.0, 1.0] * 20, weights=[1.0, 0.0] * 20) == (0.0, 0.0)


# ---------------------------------------------------------------------- suites
def test_shipped_suites_load_and_all_their_files_are_there() -> None:
    for name in ("quick", "standard", "full"):
        suite = Suite.load(name)
        assert suite.name == name and len(suite.id) == 64
        assert len({part.kind for part in suite.texts}) >= 5
        for part in suite.texts:
            assert suite.texts_of(part)
        for part in suite.tasks:
            task = read_task(suite, part)
            assert task.items and all(i.gold < max(1, len(i.choices)) for i in task.items)


def test_a_suite_with_a_mistake_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("version: 1\nname: mine\ntexts: [{kind: a, file: nowhere.txt}]\nlimit: {}\n")
    with pytest.raises(SurgeryError, match="limit"):
        Suite.load(file)
    file.write_text("version: 1\nname: mine\ntexts: [{kind: a, file: nowhere.txt}]\n")
    with pytest.raises(SurgeryError, match=r"nowhere\.txt"):
        _ = Suite.load(file).id
    with pytest.raises(SurgeryError, match="known: .*quick"):
        Suite.load("quickest")


def test_spread_is_even_and_groups_share(tmp_path: Path) -> None:
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert spread([1, 2], 5) == [1, 2]
    rows = [{"good": f"g{i}", "bad": "b", "phenomenon": "abc"[i % 3]} for i in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = TaskPart(name="p", kind="pairs", file="pairs.jsonl", group="phenomenon", items=6)
    suite = Suite.model_construct(name="s", folder=str(tmp_path))
    groups = [str(item.group) for item in read_task(suite, part).items]
    assert sorted(groups) == ["a", "a", "b", "b", "c", "c"]


def test_a_row_that_lacks_a_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 5}\n')
    suite = Suite.model_construct(name="s", folder=str(tmp_path))
    with pytest.raises(SurgeryError, match="row 1"):
        read_task(suite, TaskPart(name="c", kind="choice", file="c.jsonl"))


# ---------------------------------------------------------------------- facts
def test_companions_come_from_the_shipped_facts() -> None:
    fact = Fact.model_validate(
        {"prompt": "The capital of {} is", "subject": "France", "target": "Rome"}
    )
    paraphrases, prompts, answers = companions(fact, 5)
    assert len(paraphrases) == 2 and all("{}" in p for p in paraphrases)
    assert len(prompts) == len(answers) == 5
    assert "The capital of France is" not in prompts
    assert dict(zip(prompts, answers, strict=True))["The capital of Germany is"] == "Berlin"
    odd = Fact.model_validate(
        {"prompt": "The favourite hat of {} is", "subject": "Bob", "target": "blue"}
    )
    assert companions(odd, 5) == ([], [], [])


def test_what_was_said() -> None:
    assert says(" Rome, the capital", "Rome") is True
    assert says("Romeo and Juliet", "Rome") is False
    assert says(None, "Rome") is None
    assert first_words(" Paris, which is in") == "Paris"
    assert first_words("a b c d e f g") == "a b c d"


# ---------------------------------------------------------------------- weights
def test_weight_changes_are_measured_from_files(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path, "llama"))
    first, second, third = (f"model.layers.{i}.mlp.down_proj.weight" for i in range(3))
    weight = checkpoint.read(first)
    change = {
        first: Dense(checkpoint.read(first).clone()),
        second: Dense(-checkpoint.read(second)),
        third: LowRank(torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2) * 0.01),
    }
    found = {c.key: c for c in weight_changes(checkpoint, change, declared={first, third})}
    assert found[first].scale == pytest.approx(2.0) and found[first].norm == pytest.approx(1.0)
    assert found[second].scale == pytest.approx(0.0, abs=1e-6) and not found[second].declared
    assert found[third].scale is None and found[third].rank == 2 and found[third].declared
    assert found[third].norm == pytest.approx(
        float(change[third].value().norm() / checkpoint.read(third).norm()), rel=1e-5
    )
    assert found[first].kept_int4 == pytest.approx(1.0, abs=0.02)


def test_rounding_keeps_large_changes_and_loses_small_ones() -> None:
    weight = torch.randn(16, 300)
    assert torch.equal(
        round_to_nearest(weight, 8), round_to_nearest(round_to_nearest(weight, 8), 8)
    )
    error = (round_to_nearest(weight, 8) - weight).abs()
    blocks = torch.nn.functional.pad(weight, (0, 84)).view(16, 3, 128).abs().amax(-1)
    step = (blocks / 127).repeat_interleave(128, 1)[:, :300]
    assert bool((error <= step / 2 + 1e-6).all())
    on_grid = round_to_nearest(weight, 4)
    assert torch.allclose(round_to_nearest(on_grid + 1e-4 * weight.sign(), 4), on_grid, atol=1e-3)


def test_numerical_rank() -> None:
    a, b = torch.randn(3, 40), torch.randn(30, 3)
    assert rank(LowRank(a, b)) == rank(Dense(b @ a)) == 3
    doubled = LowRank(torch.cat([a, a]), torch.cat([b, b], dim=1))
    assert rank(doubled) == 3
    assert rank(Dense(torch.zeros(4, 5))) == 0


# ---------------------------------------------------------------------- tasks and verdicts
def _task(count: int = 40, group: str | None = None) -> Task:
    items = [
        Item(f"t/{i}", f"q{i}", ("a", "b"), 0, f"g{i % 4}" if group else None) for i in range(count)
    ]
    return Task(TaskPart(name="facts", kind="facts", file="x"), items)


def _outcomes(right: list[bool]) -> list[Outcome]:
    return [Outcome(r, "a" if r else "b") for r in right]


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


def test_verdict_finds_the_relation_that_was_overwritten() -> None:
    items = [Item(f"t/{i}", f"q{i}", ("a", "b"), 0, f"g{i % 4}") for i in range(80)]
    task = Task(TaskPart(name="facts", kind="facts", file="x", group="g"), items)
    base = [i % 10 != 0 for i in range(80)]
    edited = [b and i % 4 != 1 for i, b in enumerate(base)]
    results: list[TaskResult] = compare(
        [task], {"facts": _outcomes(base)}, {"facts": _outcomes(edited)}
    )
    verdict = decide(_report(tasks=results, figures=[_kl(0.5)]))
    assert verdict.decision == "reject" and "about g1" in verdict.reason
    assert set(LIMITS) >= {"kl_mean", "neighborhood_drop"}


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
            {"p": "a b c d", "q": "x y"},
            {"p": "a a a a a", "q": ""},
            {"p": 0.5, "q": 1.0},
            {"p": 4.0},
        )
    }
    assert figures["surprise"].change == 3.5
    assert figures["silence"].edited == 0.5
    assert figures["entropy"].change is not None and figures["entropy"].change < 0
    far = decide(_report(figures=[figures["surprise"]]))
    assert far.decision == "reject" and "surprise" in far.reason
