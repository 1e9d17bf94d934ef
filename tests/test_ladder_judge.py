"""The ladder's items, made-up twins, intervals, and what a rung is said to show."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from laddering import capitals, measured

from surgery.errors import SurgeryError
from surgery.ladder import Item, halves, items_of, twins
from surgery.ladder.interval import difference, of_items, wilson
from surgery.ladder.judge import by_item, judge, pooled, taken_away, verdict
from surgery.ladder.relations import LANGUAGES, relation_of, relations, translated
from surgery.ladder.rungs.questions import _abroad
from surgery.model import Model
from surgery.spec import Fact


# ---------------------------------------------------------------------- items and data
def test_items_and_twins(tiny_model: Callable[..., Model]) -> None:
    items = items_of(capitals(), tiny_model("llama"))
    first = items[0]
    assert (first.old, first.new, first.text) == ("Paris", "Rome", "The capital of France is")
    assert first.relation is not None and first.relation.name == "capital"
    assert len(first.alternatives) == 4 and not {"Paris", "Rome"} & set(first.alternatives)
    answers = {answer for _, answer in first.others}
    assert answers and not {"Paris", "Rome"} & answers
    # No hint is about a subject that is itself tested.
    assert not any(f.subject in prompt for f in capitals() for prompt, _ in first.others)
    made = twins(items, 3)
    subjects = {twin.subject for row in made for twin in row}
    assert len(subjects) == 12 and not subjects & {item.subject for item in items}
    assert all(
        twin.answers == item.answers and twin.template == item.template and twin.twin
        for row in made
        for twin, item in zip(row, items, strict=True)
    )
    assert made == twins(items, 3)


def test_one_subject_has_one_twin_and_one_half() -> None:
    def about(subject: str, place: int) -> Item:
        return Item(f"{place} {{}}", subject, "a", "b", ())

    items = [about(s, i) for i, s in enumerate("ABCDABCD")]
    row = twins(items, 1)[0]
    assert [t.subject for t in row[:4]] == [t.subject for t in row[4:]]
    fold = halves(items, 3)
    assert fold[:4] == fold[4:] and sorted(fold[:4]) == [0, 0, 1, 1]


def test_enough_twins_for_many_items() -> None:
    items = [Item("{} is", f"S{i}", "a", "b", ()) for i in range(60)]
    names = [t.subject for row in twins(items, 3) for t in row]
    assert len(set(names)) == 180


def test_forgotten_fact_has_no_new_answer(tiny_model: Callable[..., Model]) -> None:
    fact = Fact(
        prompt="The capital of {} is", subject="France", target="Paris", target_true="Paris"
    )
    item = items_of([fact], tiny_model("llama"))[0]
    assert item.new is None and item.answers[0] == "Paris" and len(item.answers) > 1


def test_nothing_to_compare_with_is_said(tiny_model: Callable[..., Model]) -> None:
    fact = Fact(prompt="{} likes", subject="France", target="tea", target_true="tea")
    with pytest.raises(SurgeryError, match="nothing competes"):
        items_of([fact], tiny_model("llama"))
    with pytest.raises(SurgeryError, match="no facts"):
        items_of([], tiny_model("llama"))


def test_relations_are_complete() -> None:
    for relation in relations():
        assert relation.known and set(relation.languages) == set(LANGUAGES)
        for text in (relation.question, *relation.prompts, *relation.languages.values()):
            assert text.count("{}") == 1, text
    found = relation_of("{} is located in the city of")
    assert found is not None and found.name == "landmark_city"
    assert relation_of("{} is fond of") is None
    assert translated("German", "fr", True) == "allemand"
    assert translated("Klingon", "fr", True) is None and translated("Oslo", "fr", False) == "Oslo"


def test_language_forms_translate_words_and_skip_what_they_cannot() -> None:
    relation = relation_of("The official language of {} is")
    item = Item("The official language of {} is", "Peru", "Spanish", "Arabic", ("Thai", "Klingon"),
                relation=relation)  # fmt: skip
    assert _abroad(item)[1] == (
        "Die Amtssprache von Peru ist",
        ("Spanisch", "Arabisch", "Thailändisch"),
    )
    # Others of the relation go ahead, but none that the hints leave out.
    shown = replace(item, others=(("The official language of Italy is", "Italian"),))
    (prompt, _) = _abroad(shown)[1]
    assert prompt == "Die Amtssprache von Italien ist Italienisch.\nDie Amtssprache von Peru ist"
    assert _abroad(replace(item, new="Klingon")) == []
    assert _abroad(replace(item, relation=None)) == []


# ---------------------------------------------------------------------- intervals and judgement
def test_wilson_and_newcombe_agree_with_published_examples() -> None:
    # Newcombe (1998), table II, example (a) of method 10: 56/70 - 48/80 = 0.2 [0.0524, 0.3339].
    low, high = difference(56 / 70, 70, 48 / 80, 80)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)
    low, high = wilson(0.0, 10)
    assert low == pytest.approx(0, abs=1e-12) and round(high, 4) == 0.2775
    assert wilson(1.0, 10)[0] == pytest.approx(1 - high)


def test_interval_over_items() -> None:
    # Student's t by hand: mean .5, s = .1, n = 4, t(.975, 3) = 3.1824.
    values = [0.4, 0.4667, 0.5333, 0.6]
    low, high = of_items(values, 1000)
    spread = math.sqrt(sum((v - 0.5) ** 2 for v in values) / 3)
    assert high - low == pytest.approx(2 * 3.182446 * spread / 2, abs=1e-4)
    low, high = of_items([0.0] * 12, 13)
    assert low < 0 < high and high == pytest.approx(0.0453, abs=1e-3)
    assert of_items([1.0], 3) == (-1.0, 1.0)


def test_overall_is_the_mean_over_rungs_with_an_interval_over_items() -> None:
    known, never = [1] * 8, [0] * 8
    rungs = [
        replace(measured(known, never, never), name="direct"),
        replace(measured(known, known, never), name="one"),
        replace(measured(known, [1, 1, 1, 1, 0, 0, 0, 0], never), name="two"),
    ]
    found = pooled(rungs, judge(rungs), "direct")
    assert found is not None and (found.n, found.rungs) == (8, 2)
    assert found.recovered == pytest.approx(0.75) and found.recovered_interval is not None
    assert found.recovered_interval == pytest.approx(of_items([1.0] * 4 + [0.5] * 4, 2))


def test_a_rung_that_asks_about_few_weighs_as_little_as_it_asks() -> None:
    """What comes back in full is 100 % of what was there, however few facts some rungs ask about."""
    half = [1] * 12
    few = measured(half, half, [0] * 11 + [1])
    few = replace(few, name="two").among([True] * 4 + [False] * 7 + [True])
    rungs = [replace(measured([1] * 12, [1] * 12, [0] * 12), name="one"), few]
    found = pooled(rungs, [replace(r, status="back") for r in judge(rungs)], None)
    assert found is not None and (found.n, found.rungs) == (12, 2)
    assert found.recovered == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("base", "edited", "control", "status"),
    [
        ([1] * 20, [1] * 20, [0] * 20, "back"),
        ([1] * 20, [0] * 20, [0] * 20, "held"),
        ([1] * 40, [1] * 20 + [0] * 20, [0] * 40, "partly"),
        ([1] * 20, [1] * 20, [1] * 20, "silent"),  # whoever knows nothing says the same
        ([1] * 4, [1, 1, 0, 0], [0] * 4, "unclear"),
    ],
)
def test_status(base: list[int], edited: list[int], control: list[int], status: str) -> None:
    (rung,) = judge([measured(base, edited, control)])
    assert rung.status == status
    if status in ("back", "held"):
        assert rung.recovered == (1.0 if status == "back" else 0.0)
    if status == "silent":
        assert rung.recovered is None


def test_by_item_counts_only_rungs_that_tell() -> None:
    item = Item("{}", "s", "a", "b", ())
    rows = [
        replace(measured([1, 1, 1], [0, 1, 1], [0, 0, 1]), name="one"),
        replace(measured([1, 0, 1], [0, 0, 1], [0, 0, 0]), name="two"),
    ]
    said = [("", "")] * 3
    a, b, c = by_item([item] * 3, rows, None, [True] * 3, said, said)
    assert (a.deepest, a.returns_at, a.share) == ("two", None, 0.0)
    assert (b.deepest, b.returns_at, b.share) == (None, "one", 1.0)
    assert c.rungs == {"one": "untold", "two": "back"} and c.returns_at == "two"


def test_the_climb_is_with_what_was_taken_away() -> None:
    direct = replace(measured([1, 1, 1, 0], [0, 0, 1, 0], [0] * 4), name="direct")
    question = replace(measured([1, 1, 1, 1], [1, 1, 1, 0], [0] * 4), name="question")
    entry, taken = taken_away([direct, question], 4)
    assert entry == "direct" and taken == [True, True, False, False]
    assert [s.knows for s in question.among(taken).edited] == [True, True, None, None]
    assert judge([question.among(taken)])[0].n == 2
    # A refusal that is only given in the chat was made there.
    assert taken_away([question, replace(direct, edited=direct.base)], 4)[0] == "question"
    assert taken_away([replace(direct, name="int4")], 4) == (None, [True] * 4)


def test_small_signs_on_many_rungs_are_a_sign() -> None:
    """No rung is proof by itself at a level corrected for twelve; together they are."""
    known, never, some = [1] * 12, [0] * 12, [1] * 5 + [0] * 7
    one = replace(measured(known, never, never), name="direct")

    def word(back: int) -> tuple[str, str | None]:
        rungs = [one]
        for number in range(12):
            turned = some[number % 5 :] + some[: number % 5]
            edited = turned if number < back else never
            rungs.append(replace(measured(known, edited, never), name=f"r{number}"))
        found = judge(rungs)
        assert all(r.status == "held" or r.recovered for r in found)
        word, _, deepest, _ = verdict(found, pooled(rungs, found, "direct"), "direct", [True] * 12)
        return word, deepest

    assert word(0) == ("gone", "r11")
    assert word(1)[0] == "unclear"
    assert word(12) == ("hidden", "direct")


def test_words() -> None:
    def word(direct: list[int], other: list[int]) -> tuple[str, str | None]:
        known, never = [1] * 20, [0] * 20
        one = replace(measured(known, direct, never), name="direct")
        entry, taken = taken_away([one], 20)
        rungs = [one, replace(measured(known, other, never), name="int4").among(taken)]
        found = judge(rungs)
        word, _, deepest, _ = verdict(found, pooled(rungs, found, entry), entry, taken)
        return word, deepest

    assert word([0] * 20, [1] * 20) == ("hidden", "direct")
    assert word([0] * 20, [0] * 20) == ("gone", "int4")
    assert word([1] * 20, [1] * 20)[0] == "unchanged"
    assert word([0, 1] * 10, [0, 1] * 10) == ("gone", "int4")  # half was never changed
    assert word([0, 1] * 10, [1] * 20) == ("hidden", "direct")
