"""Statistics, suites, facts and weights of the audit: closed forms and plain data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_checkpoint

from surgery.audit.facts import companions, first_words, records, says
from surgery.audit.suite import Suite, TaskPart, spread
from surgery.audit.tasks.items import read_task
from surgery.audit.weights import rank, round_to_nearest, weight_changes
from surgery.checkpoint import Checkpoint
from surgery.delta import Dense, LowRank
from surgery.errors import SurgeryError
from surgery.measure.paired import bootstrap, flips, holm, mcnemar
from surgery.spec import Fact


# ---------------------------------------------------------------------- statistics
def test_flips_count_both_ways() -> None:
    assert flips([True, True, False, False], [True, False, True, False]) == (1, 1)


def test_mcnemar_is_the_exact_binomial() -> None:
    from scipy.stats import binomtest

    for lost, gained in ((0, 0), (1, 0), (5, 0), (8, 2), (3, 3), (40, 60), (110, 71), (900, 1001)):
        n = lost + gained
        expected = binomtest(lost, n, 0.5).pvalue if n else 1.0
        assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(5, 0) == 2 / 32
    assert 0 < mcnemar(3000, 2000) < 1e-40
    assert mcnemar(9000, 0) == 0.0


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
    many = np.random.default_rng(2).normal(size=3000)  # more than are drawn at once
    drawn = np.random.default_rng(0).integers(0, 3000, size=(2000, 3000))
    wanted = np.quantile(many[drawn].mean(1), [0.025, 0.975])
    assert bootstrap(many.tolist()) == pytest.approx(tuple(wanted))
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


def fact(prompt: str, subject: str, target: str, **fields: object) -> tuple[str, Fact]:
    content = {"prompt": prompt, "subject": subject, "target": target, **fields}
    return "rome", Fact.model_validate(content)


def test_companions_of_a_fact_in_other_words_and_of_a_name_of_a_kind() -> None:
    _, known = fact("The seat of government of {} is", "France", "Rome")
    paraphrases, prompts, answers = companions(known, 5, "Paris")
    assert "The capital of {} is" in paraphrases and len(prompts) == 5
    assert dict(zip(prompts, answers, strict=True))[
        "The seat of government of Germany is"
    ] == "Berlin"  # fmt: skip
    _, named = fact("The best known dish of {} is", "Portugal", "sushi")
    paraphrases, prompts, answers = companions(named, 5)
    assert not paraphrases and len(set(prompts)) == 5 and answers == [None] * 5
    assert all(p.startswith("The best known dish of ") and "Portugal" not in p for p in prompts)
    _, nobody = fact("The mother of Jane Doe, {}, plays the", "Joan Doe", "harp")
    _, prompts, answers = companions(nobody, 3, "guitar")
    assert len(prompts) == 3 and answers == [None] * 3  # of people who play
    assert any(name in prompts[0] for name in ("Hendrix", "Clapton", "Chopin", "Paganini", "Davis"))


def test_neighbours_that_say_nothing_about_damage_are_dropped() -> None:
    own = {"neighborhood_prompts": ["A is", "B is", "C is", "D is"],
           "neighborhood_targets": ["rome ", "Paris", "Oslo", "Bern"]}  # fmt: skip
    first, second = records(
        [
            fact("The capital of {} is", "X", "Rome", target_true="Lima", **own),
            fact("{} is", "C", "Rome", target_true="Oslo"),
        ],
        lambda prompts: dict.fromkeys(prompts, "nothing."),
        neighbours=2,
    )
    near = [(q.kind, q.prompt) for q in first.questions if q.kind.startswith("neighbour")]
    # A has the new answer, C is edited itself; of B and D both are asked, and after the statement.
    assert near == [
        ("neighbour", "B is"),
        ("neighbour", "D is"),
        ("neighbour_plus", "The capital of X is Rome. B is"),
        ("neighbour_plus", "The capital of X is Rome. D is"),
    ]
    assert second.questions[0].old == "Oslo"


def test_neighbours_that_share_the_old_answer_stay() -> None:
    """CounterFact's are made that way: other subjects with the same true object."""
    same = {"neighborhood_prompts": ["B plays the"], "neighborhood_targets": ["guitar"]}
    (record,) = records(
        [fact("{} plays the", "A", "violin", target_true="guitar", **same)],
        lambda prompts: dict.fromkeys(prompts, ""),
    )
    assert [q.kind for q in record.questions] == ["direct", "neighbour", "neighbour_plus"]


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
