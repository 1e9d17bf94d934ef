"""The workbench's plain functions, on tiny models: no browser, no server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgery.errors import Cancelled, SurgeryError
from surgery.progress import track
from surgery.spec import EditSpec
from tests.tiny import tiny_checkpoint
from ui.actions import commands, edits, panel, specs
from ui.actions.answers import Asked, Pair, answer_both
from ui.highlight import differing, marked, shaded
from ui.jobs import Job
from ui.markup import esc
from ui.naming import state_name, what
from ui.session import Bench
from ui.stacks import Entry, History, moved, removed, toggled

FACT = """version: 1
edits:
  - kind: rome
    facts:
      - prompt: The capital of {} is
        subject: France
        target: Rome
    layer: 1
    steps: 4
    contexts: 0
    statistics_tokens: 400
"""
OTHER = FACT.replace("France", "Japan").replace("Rome", "Madrid")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("ui"), "llama")


@pytest.fixture
def bench(checkpoint: Path) -> Bench:
    bench = Bench()
    bench.open(checkpoint)
    return bench


def solve(bench: Bench, text: str = FACT) -> str:
    return edits.solve(bench, EditSpec.parse(text))().delta.id


# ---------------------------------------------------------------------- the stack as data
def test_history_steps_both_ways_and_forgets_what_was_undone() -> None:
    history = History()
    one, two = (Entry("a"),), (Entry("a"), Entry("b"))
    history.record(one)
    history.record(two)
    history.at -= 1
    assert history.now == one and history.can_redo
    history.record((Entry("c"),))
    assert not history.can_redo and history.states == [(), one, (Entry("c"),)]


def test_stack_changes_leave_the_folders_edits_below() -> None:
    stack = (Entry("f", folder=True), Entry("a"), Entry("b"))
    assert [e.id for e in moved(stack, "b", -5)] == ["f", "b", "a"]
    assert [e.on for e in toggled(stack, "f")] == [False, True, True]
    assert [e.id for e in removed(stack, "a")] == ["f", "b"]
    with pytest.raises(SurgeryError, match="switch it off"):
        removed(stack, "f")
    with pytest.raises(SurgeryError, match="no edit"):
        toggled(stack, "x")


# ---------------------------------------------------------------------- the bench
def test_an_edit_changes_the_weights_and_undo_proves_the_base_is_back(bench: Bench) -> None:
    assert bench.proof is not None and bench.proof.is_base
    before = bench.proof.digest
    id = solve(bench)
    assert bench.proof is not None
    assert bench.proof.changed == ("model.layers.1.mlp.down_proj.weight",)
    assert "1 edit" in bench.state and "France → Rome" in bench.state
    edited = bench.proof.digest
    assert edited != before

    bench.undo()
    assert bench.proof.is_base and bench.proof.digest == before
    assert "all 38 tensors" in panel.proof_line(bench)
    bench.redo()
    assert bench.proof.digest == edited
    bench.toggle(id)
    assert bench.proof.is_base and "off" in bench.state
    bench.toggle(id)
    bench.remove(id)
    assert bench.proof.digest == before and not bench.stack


def test_the_proof_sees_a_change_that_no_edit_made(bench: Bench) -> None:
    import torch

    with torch.no_grad():
        bench.model.embedding.weight[0, 0] += 1e-3
    assert bench.prove().changed == ("model.embed_tokens.weight",)
    assert "identical to the base" not in panel.header(bench)


def test_both_sides_are_seen_and_the_stack_is_back_afterwards(bench: Bench) -> None:
    solve(bench)
    weight = bench.model.mlp_out_weight(1)
    edited = weight.clone()
    with bench.as_base() as model:
        assert not model.edits
        assert bench.prove().is_base
    assert bool((weight == edited).all())
    with pytest.raises(ValueError), bench.as_base():
        raise ValueError
    assert bool((weight == edited).all())


def test_an_edit_beneath_another_can_be_taken_out_and_the_other_says_so(bench: Bench) -> None:
    first, second = solve(bench), solve(bench, OTHER)
    assert not bench.stale()
    bench.toggle(first)
    assert "solved on top of" in bench.stale()[second]
    assert "Solve again" in panel.panel(bench)
    done = edits.solve_again(bench, second)()
    assert not bench.stale()
    assert bench.stack[1].id == done.delta.id != second


def test_edits_can_be_reordered(bench: Bench) -> None:
    first, second = solve(bench), solve(bench, OTHER)
    digest = bench.prove().digest
    bench.move(second, -1)
    assert [e.id for e in bench.stack] == [second, first]
    bench.undo()
    assert bench.prove().digest == digest


def test_a_window_with_an_old_picture_is_told_so(bench: Bench) -> None:
    seen = bench.revision
    id = solve(bench)
    with pytest.raises(SurgeryError, match="another window"):
        bench.toggle(id, seen)
    bench.toggle(id, bench.revision)


def test_a_bad_path_leaves_the_loaded_model_alone(bench: Bench, tmp_path: Path) -> None:
    solve(bench)
    state, digest = bench.state, bench.prove().digest
    with pytest.raises(SurgeryError, match="no such checkpoint folder"):
        bench.open(tmp_path / "nowhere")
    assert bench.state == state and bench.prove().digest == digest


def test_an_edited_folder_opens_with_its_edits_which_can_be_switched_off(
    bench: Bench, checkpoint: Path, tmp_path: Path
) -> None:
    from surgery.stack import apply

    solve(bench)
    apply(bench.here, checkpoint, tmp_path / "edited")
    again = Bench()
    again.open(tmp_path / "edited")
    assert [e.folder for e in again.stack] == [True]
    assert again.proof is not None and len(again.proof.changed) == 1
    again.toggle(again.stack[0].id)
    assert again.proof.is_base
    again.undo()
    assert len(again.proof.changed) == 1


# ---------------------------------------------------------------------- jobs
def test_a_cancelled_solve_leaves_everything_as_it_was(bench: Bench) -> None:
    digest, revision = bench.prove().digest, bench.revision
    text = FACT.replace("steps: 4", "steps: 100000").replace("contexts: 0", "stop_loss: 0.000001")
    job = bench.job("solving", edits.solve(bench, EditSpec.parse(text)), "me")
    steps = job.steps(0.02)
    next(steps)
    assert not bench.cancel("somebody else")
    assert bench.cancel("me")
    list(steps)
    with pytest.raises(Cancelled):
        job.result()
    assert bench.prove().digest == digest and bench.revision == revision
    assert not bench.stack and not bench.at_work


def test_a_window_that_goes_away_takes_its_job_with_it() -> None:
    stopped = threading.Event()

    def work() -> None:
        try:
            for _ in track(range(10_000), "counting"):
                time.sleep(0.005)
        finally:
            stopped.set()

    job = Job("counting", work)
    steps = job.steps(0.01)
    next(steps)
    time.sleep(0.05)
    steps.close()  # type: ignore[attr-defined]
    assert stopped.is_set() and job.ended


def test_progress_of_a_job_is_reported() -> None:
    def work() -> int:
        for _ in track(range(20), "counting"):
            time.sleep(0.01)
        return 7

    job = Job("counting", work)
    shares = [step.share for step in job.steps(0.02)]
    assert job.result() == 7
    known = [share for share in shares if share is not None]
    assert known and known == sorted(known) and known[-1] > 0.2


# ---------------------------------------------------------------------- both sides
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


# ---------------------------------------------------------------------- form and YAML
def test_form_to_yaml_and_back() -> None:
    values = dict(
        specs.BLANK,
        prompt="The capital of {} is",
        subject="France",
        target="Rome",
        layers="8",
        paraphrases="France has its capital in\n{}'s capital is",
        name="paris",
    )
    text = specs.to_yaml("fact", values)
    spec = EditSpec.parse(text)
    assert spec.name == "paris" and spec.edits[0].layer == 8  # type: ignore[union-attr]
    form, found = specs.from_yaml(text)
    assert form == "fact"
    for key in ("prompt", "subject", "target", "layers", "paraphrases", "name"):
        assert found[key] == values[key]


def test_the_form_keeps_what_it_does_not_know() -> None:
    text = FACT + "    stop_loss: 0.2  # mine\n  - kind: ablate\n    direction: d.safetensors\n"
    form, values = specs.from_yaml(text)
    written = specs.to_yaml(form, dict(values, target="Madrid"), text)
    assert "stop_loss: 0.2  # mine" in written and "d.safetensors" in written
    assert "Madrid" in written and "Rome" not in written


@pytest.mark.parametrize(
    ("form", "changes", "kind"),
    [
        (
            "facts",
            {
                "method": "memit",
                "table": [["{} is", "Japan", "two"], ["{} is", "sun", "one"], ["", "", ""]],
            },
            "memit",
        ),
        ("facts", {"method": "alphaedit", "file": "facts.jsonl", "layers": "1, 2"}, "alphaedit"),
        ("behaviour", {"positive": "a\nb", "negative": "c\nd", "strength": -0.5}, "ablate"),
        ("behaviour", {"positive": "p.txt", "negative": "n.txt", "read_layer": 2}, "ablate"),
        ("include", {"path": "x.delta.safetensors", "scale": 0.5}, "delta"),
    ],
)
def test_every_form_writes_a_valid_spec(form: str, changes: dict, kind: str) -> None:
    text = specs.to_yaml(form, {**specs.BLANK, **changes})
    assert EditSpec.parse(text).edits[0].kind == kind
    back, values = specs.from_yaml(text)
    assert back == form
    assert specs.to_yaml(back, values, text) == text


def test_a_mistake_names_its_line_and_shows_it() -> None:
    spec, said = specs.check(FACT.replace("layer: 1", "layre: 1"))
    assert spec is None
    assert "line 8" in said and "layre: 1" in said and "did you mean" in said
    assert specs.check("edits: [")[0] is None


def test_ready_made_specs_are_whole() -> None:
    for name in specs.ready():
        spec, said = specs.check(specs.read_ready(name))
        assert spec is not None, said


# ---------------------------------------------------------------------- before solving
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


# ---------------------------------------------------------------------- words
def test_differing_words_join_back_to_the_texts() -> None:
    left, right = differing("The capital is Paris, of course", "The capital is Rome, of course")
    assert "".join(t for t, _ in left) == "The capital is Paris, of course"
    assert [t.strip() for t, new in left if new] == ["Paris,"]
    assert [t.strip() for t, new in right if new] == ["Rome,"]
    assert "<mark>" not in marked("same", "same")[0]


def test_nothing_a_model_says_becomes_markup() -> None:
    nasty = "<script>x</script> ${a} {{b}} `c`"
    for text in (esc(nasty), *marked(nasty, "other"), shaded([nasty], [3.0])):
        assert "<script" not in text and "${" not in text and "{{" not in text


def test_names() -> None:
    assert what({"edits": [{"kind": "ablate", "strength": 0.5}]}) == "ablate, strength 0.5"
    assert state_name("m", []) == "m, no edits"
    assert state_name("m", [("a", True), ("b", False)]) == "m + 1 edit: a, b (off)"
    assert state_name("m", [("a", False)]) == "m, all edits off: a"


# ---------------------------------------------------------------------- copy as command
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


# ---------------------------------------------------------------------- taking away
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


# ---------------------------------------------------------------------- the other screens
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
