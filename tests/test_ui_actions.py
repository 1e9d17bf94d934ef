"""The workbench's plain functions, on tiny models: no browser, no server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from benching import FACT, OTHER, solve

from surgery.errors import SurgeryError
from surgery.spec import EditSpec
from tests.tiny import tiny_checkpoint
from ui.actions import commands, edits, specs
from ui.actions.answers import Asked, Pair, answer_both
from ui.session import Bench


def test_without_edits_both_sides_say_the_same_and_with_them_what_each_would_say(
    bench: Bench,
) -> None:
    from surgery.model import generate

    asked = Asked(tokens=20)
    pair = answer_both(bench, Pair("The capital of France is"), asked)
    assert pair.finished and pair.same and len(pair.left.ids) == 20
    solve(bench)
    pair = answer_both(bench, Pair("The capital of France is"), asked)
    with bench.as_base() as model:
        (base,) = generate(model, ["The capital of France is"], max_new_tokens=20)
    (edited,) = generate(bench.model, ["The capital of France is"], max_new_tokens=20)
    assert pair.left.text == base and pair.right.text == edited
    assert pair.left.state.endswith("no edits") and "1 edit" in pair.right.state
    assert all(nats >= 0 for nats in pair.left.surprise)


def test_answers_end_where_the_models_positions_do(tmp_path: Path) -> None:
    bench = Bench()
    bench.open(tiny_checkpoint(tmp_path, "gpt2"))
    tokenizer = bench.model.tokenizer
    prompts = ["the sun " * count for count in range(60)]
    prompt = next(text for text in prompts if len(tokenizer(text)["input_ids"]) > 100)
    room = 128 - len(tokenizer(prompt)["input_ids"])
    pair = answer_both(bench, Pair(prompt), Asked(tokens=40))
    assert 0 < room < 28 and len(pair.left.ids) == room
    with pytest.raises(SurgeryError, match="longer than the 128 tokens"):
        answer_both(bench, Pair("the sun " * 100), Asked(tokens=4))


def test_sampling_with_one_seed_is_the_same_twice(bench: Bench) -> None:
    asked = Asked(tokens=12, temperature=1.0, seed=3)
    first = answer_both(bench, Pair("The sun is"), asked)
    assert first.same
    assert first.left.text == answer_both(bench, Pair("The sun is"), asked).left.text
    other = answer_both(bench, Pair("The sun is"), Asked(tokens=12, temperature=1.0, seed=4))
    assert other.left.text != first.left.text


def test_next_tokens_show_the_change(bench: Bench) -> None:
    from ui.actions.tokens import next_tokens

    rows = next_tokens(bench, "The capital of France is")
    assert all(row.change == 0 for row in rows)
    solve(bench)
    assert any(abs(row.change) > 1e-4 for row in next_tokens(bench, "The capital of France is"))


def test_a_batch_puts_what_changed_on_top(bench: Bench) -> None:
    from ui.actions.batch import ask_all, batch_html

    solve(bench, FACT.replace("steps: 4", "steps: 30"))
    rows = ask_all(bench, ["sun", "The capital of France is", "moon"], False, 6)()
    changed = [row.changed for row in rows]
    assert changed == sorted(changed, reverse=True) and any(changed)
    assert f"{sum(changed)} of 3 answers changed" in batch_html(rows, bench.state)


def test_conflicts_with_the_stack_are_shown_before_solving(bench: Bench) -> None:
    spec = EditSpec.parse(FACT.replace("Rome", "Berlin"))
    assert not edits.plan(bench, spec).conflicts
    solve(bench)
    found = edits.plan(bench, spec)
    assert found.tensors == ["model.layers.1.mlp.down_proj.weight"]
    assert any("changes model.layers.1" in said for said in found.conflicts)
    assert any("both edit" in said and "Berlin" in said for said in found.conflicts)
    with pytest.raises(SurgeryError, match="layers 0 to 3"):
        edits.plan(bench, EditSpec.parse(FACT.replace("layer: 1", "layer: 9")))


def test_the_result_says_whether_it_took(bench: Bench) -> None:
    done = edits.solve(bench, EditSpec.parse(FACT.replace("steps: 4", "steps: 60")))()
    (told,) = done.told
    assert told.prompt == "The capital of France is" and told.p_after > told.p_before
    assert ("it took" in edits.outcome_html(done)) == (told.p_after > 0.5)


def runs(text: str) -> Iterator[list[str]]:
    """The surgery commands of a shell text, here-documents left out."""
    import shlex

    ends: str | None = None
    for line in text.splitlines():
        if ends is not None:
            ends = None if line == ends else ends
        elif line.startswith("cat >"):
            ends = line.split("<<")[1].strip("'")
        elif line.startswith("surgery "):
            yield shlex.split(line)[1:]


def test_every_copied_command_is_one_the_command_line_takes(bench: Bench) -> None:
    from surgery.cli import _parse

    solve(bench)
    texts = [
        commands.solve_command(bench, FACT, "it's"),
        commands.apply_command(bench),
        commands.answers_command(bench, ["a 'b'", "c"], False, 20),
        commands.audit_command(bench, "quick"),
        commands.trace_command(bench, "The capital of France is", "France", "Rome", 6),
        commands.flinch_command(bench, [str(bench.path)], True, 4),
    ]
    found = [argv for text in texts for argv in runs(text)]
    assert len(found) >= 7
    for argv in found:
        _parse(argv)


def test_what_is_taken_away_is_the_edit(
    bench: Bench, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.checkpoint import Checkpoint
    from surgery.delta import load_delta
    from ui.actions import takeaway

    monkeypatch.setattr(takeaway, "export_folder", lambda: tmp_path)
    with pytest.raises(SurgeryError, match="nothing to take away"):
        takeaway.deltas(bench)()
    id = solve(bench)
    taken = takeaway.deltas(bench)()
    assert load_delta(taken.path).id == id
    assert EditSpec.load(takeaway.spec(bench)().path).edits[0].kind == "rome"
    out = takeaway.checkpoint(bench)().path
    assert bench.proof is not None
    changed = [
        key
        for key in Checkpoint.open(out).tensors
        if Checkpoint.open(out).hash(key) != Checkpoint.open(checkpoint).hash(key)
    ]
    assert tuple(changed) == bench.proof.changed
    with pytest.raises(SurgeryError, match="no report yet"):
        takeaway.report("")()


def test_damage_is_measured_for_what_is_on_and_nothing_is_left_behind(bench: Bench) -> None:
    from ui.actions import damage

    with pytest.raises(SurgeryError, match="nothing is switched on"):
        damage.audit(bench, "quick")()
    first, second = solve(bench), solve(bench, OTHER)
    digest = bench.prove().digest
    id, report = damage.audit(bench, "quick")()
    assert damage.REPORTS[id] is report
    assert [edit["id"] for edit in report.edited.edits] == [first, second]
    shown = damage.report_html(report, bench.state, bench.stamp)
    assert report.verdict.reason[:20] in shown and "Sham edit" in shown
    assert damage.page(report).count("<iframe") == 1 and "{{" not in damage.page(report)

    shares = damage.attribute(bench, "quick")()
    assert {share.edit for share in shares} == {first, second}
    assert "France → Rome" in damage.attribution_html(bench, shares)
    assert "<iframe" in damage.ladder(bench)()
    bench.toggle(first)  # the second was solved on top of it: measured all the same
    damage.audit(bench, "quick")()
    bench.toggle(first)
    assert bench.prove().digest == digest


def test_models_are_compared_in_both_states_of_the_one_in_memory(
    bench: Bench, checkpoint: Path
) -> None:
    from ui.actions import models

    solve(bench, FACT.replace("steps: 4", "steps: 30"))
    digest = bench.prove().digest
    asked = ["The capital of France is", "the sun", "tea and coffee"]
    shown = models.answers(bench, [models.BASE, models.STACK, str(checkpoint)], asked, 8, False)()
    assert (
        shown.count('class="round"') == 3 and "(edited)" in shown and 'class="pair three"' in shown
    )
    with pytest.raises(SurgeryError, match="2 to 4"):
        models.answers(bench, [models.BASE], asked, 8, False)()
    argued = models.debate(bench, models.BASE, models.STACK, asked[0], "must_not", 2, 0)()
    assert argued.count("<li") == 2
    checked = models.crosscheck(bench, models.BASE, models.STACK, asked, 8)()
    assert checked.count("reads") == 2
    assert bench.prove().digest == digest
    assert models.as_argument(bench, models.STACK).count("+") == 1


def test_looking_inside_gives_a_layer_to_the_form(bench: Bench) -> None:
    from ui.actions import inside

    shown = inside.trace(bench, "The capital of France is", "France")()
    assert shown.count("<figure") == 3 and 'data-layer="3"' in shown
    values = inside.picked(dict(specs.BLANK), "The capital of France is", "France", 3)
    assert (values["prompt"], values["subject"], values["layers"]) == (
        "The capital of {} is",
        "France",
        "3",
    )
    assert "<figure" in inside.lens(bench, "The sun is", "moon")()
    projected = inside.project(bench, "the sun", "", "the sun\nthe moon", "tea\ncoffee")()
    assert "of the way" in projected
    with pytest.raises(SurgeryError, match="direction"):
        inside.project(bench, "the sun")()


def test_a_conversation_keeps_each_sides_own_words(bench: Bench) -> None:
    from ui.actions import talk

    id, conversation = talk.open_talk(None)
    assert talk.open_talk(id) == (id, conversation) and talk.open_talk("x")[0] != "x"
    with pytest.raises(SurgeryError, match="chat template"):
        talk.say(bench, conversation, "hello", Asked(True, 4))()
    assert not conversation.rounds
    bench.model.tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(SurgeryError, match="cannot frame this conversation"):
        talk.say(bench, conversation, "hello", Asked(True, 4))()
    assert not conversation.rounds
    bench.model.tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}{% endfor %}"
    )
    solve(bench, FACT.replace("steps: 4", "steps: 30"))
    for message in ("The capital of France is", "where"):
        talk.say(bench, conversation, message, Asked(True, 6))()
    left, right = conversation.messages("left"), conversation.messages("right")
    assert [m["role"] for m in left] == ["user", "assistant", "user"]
    assert left[1]["content"] == conversation.rounds[0].pair.left.text
    assert right[1]["content"] == conversation.rounds[0].pair.right.text
    assert talk.talk_html(conversation).count('class="round"') == 2
