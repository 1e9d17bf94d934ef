"""A whole audit: of a delta, of a folder, its report and its limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from auditing import KEY, plain_kl, rank_one

from surgery.audit import Report, answer_logprobs, audit
from surgery.audit.suite import Suite
from surgery.delta import Delta, Dense
from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.stack import applied, apply

pytestmark = pytest.mark.usefixtures("own_cache")


def test_report_of_a_delta(model: Model, suite: Suite) -> None:
    delta = rank_one(model)
    before = {key: value.clone() for key, value in model.hf.state_dict().items()}
    report = audit(model, delta, suite=suite)
    assert all(torch.equal(model.hf.state_dict()[key], value) for key, value in before.items())
    assert report.value("kl_mean") == pytest.approx(plain_kl(model, delta), rel=1e-3)
    assert (report.figure("kl_mean").sham or 0.0) > 0
    (change,) = report.weights
    assert change.key == KEY and change.rank == 1 and change.declared
    assert change.norm == pytest.approx(0.5, rel=1e-3)
    (fact,) = report.facts
    assert [q.kind for q in fact.questions] == [
        "direct", "paraphrase", "neighbour", "neighbour_plus",
    ]  # fmt: skip
    (score,) = answer_logprobs(model, [("the capital of France is", "Paris")])
    assert fact.questions[0].base_old == pytest.approx(score.probability, rel=1e-5)
    with applied(model, delta):
        (score,) = answer_logprobs(model, [("the capital of Japan is", "Tokyo")])
    assert fact.questions[2].edited_old == pytest.approx(score.probability, rel=1e-5)
    assert fact.questions[3].prompt == "the capital of France is Rome. the capital of Japan is"
    assert fact.questions[0].said_before is not None


def test_the_folder_and_the_delta_give_the_same_figures(
    model: Model, suite: Suite, tmp_path: Path
) -> None:
    delta = rank_one(model)
    apply([delta], model.checkpoint.path, tmp_path / "edited")
    one = audit(model, delta, suite=suite)
    two = audit(model.checkpoint.path, tmp_path / "edited", suite=suite)
    assert [f.model_dump() for f in one.figures] == [f.model_dump() for f in two.figures]
    assert two.edited.edits[0]["id"] == delta.id


def test_a_folder_changed_behind_our_back_is_read_as_it_is(
    model: Model, suite: Suite, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    delta = rank_one(model, size=0.01)
    apply([delta], model.checkpoint.path, tmp_path / "edited")
    file = tmp_path / "edited" / "model.safetensors"
    tensors = load_file(str(file))
    other = "model.layers.2.mlp.down_proj.weight"
    tensors[other] = tensors[other] * 2
    save_file(tensors, str(file), metadata={"format": "pt"})
    report = audit(model.checkpoint.path, tmp_path / "edited", suite=suite)
    assert {c.key for c in report.weights if not c.declared} == {other}
    assert report.verdict.decision == "reject"
    assert report.value("kl_mean") > 2 * audit(model, delta, suite=suite).value("kl_mean")  # type: ignore[operator]


def test_a_figure_that_is_not_finite_is_rejected_and_still_json(model: Model, suite: Suite) -> None:
    huge = Delta(
        {KEY: Dense(torch.full_like(model.parameter(KEY), 3e38))}, base_id=model.checkpoint.id
    )
    report = audit(model, huge, suite=suite)
    assert report.verdict.decision == "reject" and "not finite" in report.verdict.reason
    again = Report.from_json(report.to_json())
    assert again.verdict.decision == "reject"
    assert again.text()


def test_report_round_trip_and_schema(model: Model, suite: Suite) -> None:
    report = audit(model, rank_one(model), suite=suite)
    again = Report.from_json(report.to_json())
    assert again == report
    assert again.text() == report.text()
    assert "sham edit" in report.text()
    with pytest.raises(SurgeryError, match="report/99"):
        Report.from_json(report.to_json().replace("report/1", "report/99"))
    with pytest.raises(SurgeryError, match="not an audit report"):
        Report.from_json("{}")
    with pytest.raises(SurgeryError, match="not JSON"):
        Report.from_json("nonsense")


def test_limits_are_enforced_and_unknown_ones_refused(model: Model, suite: Suite) -> None:
    delta = rank_one(model, size=0.01, facts=False)
    kl = audit(model, delta, suite=suite).value("kl_mean")
    assert kl is not None and kl > 0
    refused = audit(model, delta, suite=suite, limits={"kl_mean": kl / 2})
    assert refused.verdict.decision == "reject" and "KL" in refused.verdict.reason
    assert audit(model, delta, suite=suite, limits={"kl_mean": kl * 2}).verdict.findings == [
        f for f in refused.verdict.findings if f["name"] != "kl_mean"
    ]
    with pytest.raises(SurgeryError, match="unknown limit 'kl_maen'"):
        audit(model, delta, suite=suite, limits={"kl_maen": 1.0})


def test_the_limits_of_an_edits_own_spec_are_enforced(
    model: Model, suite: Suite, tmp_path: Path
) -> None:
    """Without a spec on the call, those in the deltas hold; the strictest of them."""

    def limited(layer: int, limit: float) -> Delta:
        plain = rank_one(model, 0.01, KEY.replace("1", str(layer)), facts=False)
        spec = {"version": 1, "edits": [], "checks": {"limits": {"kl_mean": limit}}}
        return Delta(plain.tensors, base_id=plain.base_id, metadata={"spec": spec})

    strict, loose = limited(1, 1e-9), limited(2, 1e9)
    assert audit(model, loose, suite=suite).verdict.decision != "reject"
    for edited in (strict, [strict, loose], [loose, strict]):
        verdict = audit(model, edited, suite=suite).verdict
        assert verdict.decision == "reject" and verdict.limits["kl_mean"] == 1e-9
    apply([strict], model.checkpoint.path, tmp_path / "edited")
    assert audit(model, tmp_path / "edited", suite=suite).verdict.decision == "reject"
    own = audit(model, strict, suite=suite, limits={"kl_mean": 1e9})
    assert own.verdict.limits["kl_mean"] == 1e9  # the call has the last word


def test_a_limit_that_nothing_was_measured_for_is_said(model: Model, suite: Suite) -> None:
    limits = {"neighborhood_drop": 0.1, "kl_mean": 1e9}
    bare = audit(model, rank_one(model, 0.01, facts=False), suite=suite, limits=limits)
    (note,) = bare.notes
    assert "neighborhood_drop was not enforced" in note and f"note: {note}" in bare.text()
    assert not audit(model, rank_one(model, 0.01), suite=suite, limits=limits).notes


def test_tensors_that_only_one_side_has_are_said(
    model: Model, suite: Suite, tmp_path: Path
) -> None:
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    folder = copytree(model.checkpoint.path, tmp_path / "other")
    tensors = load_file(str(folder / "model.safetensors"))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    report = audit(model, folder, suite=suite)
    assert report.value("kl_max") == 0.0 and not report.weights
    assert "lm_head.weight" in report.notes[0]


def test_a_folder_in_an_order_it_was_not_solved_in_needs_force(
    model: Model, suite: Suite, tmp_path: Path
) -> None:
    delta = rank_one(model, size=0.01)
    above = Delta(delta.tensors, base_id=delta.base_id, stack=("ab" * 32,))
    apply([above], model.checkpoint.path, tmp_path / "edited", force=True)
    with pytest.raises(SurgeryError, match="solved on top of"):
        audit(model, tmp_path / "edited", suite=suite)
    assert audit(model, tmp_path / "edited", suite=suite, force=True).value("kl_mean")
