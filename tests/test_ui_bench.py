"""The bench of the workbench: stack, weights, jobs. No browser, no server."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from benching import FACT, OTHER, solve

from surgery.errors import Cancelled, SurgeryError
from surgery.progress import track
from surgery.spec import EditSpec
from ui.actions import edits, panel
from ui.jobs import Job
from ui.session import Bench
from ui.stacks import Entry, History, moved, removed, toggled


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
