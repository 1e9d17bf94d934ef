"""Tuning: fronts, journals that go on, chosen points that can be made again; and the dial."""

from __future__ import annotations

from pathlib import Path

import pytest
from behaviour import prompts

from surgery.errors import SurgeryError
from surgery.flinch.sets import Item
from surgery.methods import solve
from surgery.model import Model
from surgery.spec import AblateEdit, EditSpec
from surgery.stack import applied
from surgery.tune.dial import Dial, DialPoint, dial
from surgery.tune.metrics import Bench, Objective, objective
from surgery.tune.picture import dial_table, draw_dial, draw_front, front_table
from surgery.tune.study import SEARCHES, Point, choose, propose, tune


@pytest.fixture(scope="module")
def bench(learned: Model) -> Bench:
    items = [Item(p, "unsafe") for p in prompts("red", 4, seed=5)]
    items += [Item(p, "safe_scary") for p in prompts("one", 4, seed=5)]
    items += [Item(p, "harmless") for p in prompts("green", 4, seed=5)]
    return Bench(learned, items, tokens=3)


def spec(**fields: object) -> EditSpec:
    part = AblateEdit(positive=prompts("red", 12), negative=prompts("green", 12), layer=2, **fields)  # type: ignore[arg-type]
    return EditSpec(edits=[part])


def test_a_search_goes_on_where_it_was(learned: Model, bench: Bench, tmp_path: Path):
    journal = tmp_path / "tune.journal"
    goals = [objective("min:kl"), objective("perplexity")]
    first = tune(spec(), learned, bench, goals, trials=3, journal=journal)
    assert len(first.points) == 3
    more = tune(spec(), learned, bench, goals, trials=2, journal=journal)
    assert [p.number for p in more.points] == [0, 1, 2, 3, 4]
    assert [p.values for p in more.points[:3]] == [p.values for p in first.points]
    # Stopped or not, alone or shared: a trial's number says what it tries.
    whole = tune(spec(), learned, bench, goals, trials=5, journal=tmp_path / "whole.journal")
    assert [p.params for p in whole.points] == [p.params for p in more.points]
    assert len({str(p.params) for p in whole.points}) == 5
    with pytest.raises(SurgeryError, match="another search"):
        tune(spec(strength=0.5), learned, bench, goals, trials=1, journal=journal)

    chosen = more.chosen
    assert chosen.number in {p.number for p in more.front}
    for point in more.points:
        beaten = any(
            all(q.values[g.name] <= point.values[g.name] for g in goals)
            and any(q.values[g.name] < point.values[g.name] for g in goals)
            for q in more.points
        )
        assert beaten == (point.number not in {p.number for p in more.front})

    chosen.spec.save(tmp_path / "chosen.yaml")
    with applied(learned, solve(EditSpec.load(tmp_path / "chosen.yaml"), learned)):
        again = bench.measure(learned)
    assert again == pytest.approx(chosen.values)
    assert "<- chosen" in front_table(more)
    assert draw_front(more, tmp_path / "front.png").stat().st_size > 1000


def test_the_chosen_point_is_a_compromise():
    goals = [Objective("kl", "minimize"), Objective("unsafe_refusals", "maximize")]
    points = [
        Point(0, {}, {"kl": 0.0, "unsafe_refusals": 0.0}, spec()),
        Point(1, {}, {"kl": 0.1, "unsafe_refusals": 0.9}, spec()),
        Point(2, {}, {"kl": 1.0, "unsafe_refusals": 1.0}, spec()),
    ]
    assert choose(points, goals).number == 1
    # The largest divergence of a front is not bad for being the largest: it is small.
    goals = [Objective("unsafe_refusals", "minimize"), Objective("kl", "minimize")]
    found = [(0.0, 0.074), (0.667, 0.010), (0.833, 0.005), (1.0, 0.001)]
    seen = [Point(i, {}, {"unsafe_refusals": r, "kl": k}, spec()) for i, (r, k) in enumerate(found)]
    assert choose(seen, goals).number == 0


def test_objectives_are_read_and_checked(bench: Bench, learned: Model):
    assert objective("unsafe_refusals") == Objective("unsafe_refusals", "maximize")
    assert objective("min:unsafe_refusals") == Objective("unsafe_refusals", "minimize")
    for wrong in ("speed", "up:kl"):
        with pytest.raises(SurgeryError):
            objective(wrong)
    only = Bench(learned, [Item("green", "harmless")], tokens=2)
    with pytest.raises(SurgeryError, match="needs unsafe"):
        only.check([objective("unsafe_refusals")])


def test_the_dial_is_exact_at_nought_and_equals_solving(
    learned: Model, bench: Bench, tmp_path: Path
):
    found = dial(spec(), learned, bench, [-1.0, 0.0, 0.5, 1.0])
    at = {p.strength: p.metrics for p in found.points}
    assert at[0.0]["kl"] == 0 and at[0.0]["perplexity"] == 0
    assert at[1.0]["kl"] > at[0.5]["kl"] > 0
    with applied(learned, solve(spec(strength=0.5), learned)):
        assert bench.measure(learned) == pytest.approx(at[0.5], rel=1e-3, abs=1e-6)
    rows = dial_table(found).splitlines()[1:-1]
    assert [row.endswith("  safe") for row in rows] == [found.is_safe(p) for p in found.points]
    assert found.is_safe(next(p for p in found.points if p.strength == 0))
    assert draw_dial(found, tmp_path / "dial.svg").stat().st_size > 1000


def test_the_safe_band_stops_at_the_first_break():
    def point(strength: float, kl: float) -> DialPoint:
        return DialPoint(strength, {"kl": kl, "incoherent": 0.1, "perplexity": 0.0})

    kl = {-1.0: 0.05, -0.5: 0.9, 0.0: 0.0, 0.5: 0.1, 1.0: 0.14}
    found = Dial([point(s, v) for s, v in kl.items()], {"kl": 0.15, "incoherent": 0.05})
    assert found.band == (0.0, 1.0)
    broken = Dial([point(0.0, 0.0), point(1.0, 0.5)], {"kl": 0.15})
    assert broken.band is None


def test_what_cannot_be_turned_is_said(learned: Model, bench: Bench):
    with pytest.raises(SurgeryError, match="norm: free"):
        dial(spec(norm="columns"), learned, bench, [0.0])


@pytest.mark.parametrize("sparing", ["distil", "shift"])
def test_what_is_searched_is_what_the_part_has(sparing: str):
    import optuna

    red, one, green = (prompts(word, 12) for word in ("red", "one", "green"))
    part = AblateEdit(positive=red, spare=one, negative=green, sparing=sparing)  # type: ignore[arg-type]
    numbers = {"strength": 0.5, "first": 2}
    numbers |= {"count": 5} if sparing == "distil" else {"step": 2, "ridge": 0.2}
    trial = optuna.trial.FixedTrial(numbers)
    made = propose(trial, EditSpec(edits=[part]), 0, 12, SEARCHES).edits[0]
    assert isinstance(made, AblateEdit) and trial.params == numbers
    assert made.strength == 0.5
    assert made.layers == ([2, 3, 4, 5, 6] if sparing == "distil" else [2, 4, 6, 8])
    assert made.ridge == (part.ridge if sparing == "distil" else 0.2)
