"""What single commands do."""

from __future__ import annotations

from pathlib import Path

import pytest
from commanding import SPEC, call

from surgery.cli import main


def test_solve_writes_a_delta_and_says_what_it_is(
    place: Path, delta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from surgery.delta import load_delta

    again = place / "again.delta.safetensors"
    code, data, _ = call(
        capsys, "solve", place / "spec.yaml", "--base", place / "base", "-o", again
    )
    assert code == 0
    loaded = load_delta(again)
    assert data["id"] == loaded.id == load_delta(delta).id
    assert list(data["tensors"]) == ["model.layers.1.mlp.down_proj.weight"]
    assert data["tensors"]["model.layers.1.mlp.down_proj.weight"]["rank"] == 1


def test_a_base_in_the_spec_is_relative_to_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (place / "based.yaml").write_text("base: base" + SPEC)
    monkeypatch.chdir(tmp_path)
    assert main(["solve", str(place / "based.yaml"), "-o", "x.delta.safetensors"]) == 0


def test_apply_and_undo(
    place: Path, edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from surgery.checkpoint import Checkpoint

    base, after = Checkpoint.open(place / "base"), Checkpoint.open(edited)
    assert after.id != base.id
    code, data, _ = call(capsys, "undo", edited, "-o", tmp_path / "back")
    assert code == 0 and data["edits"] == []
    assert Checkpoint.open(tmp_path / "back").id == base.id
    code, data, err = call(capsys, "undo", edited, "--edit", "nobody", "-o", tmp_path / "other")
    assert code == 1 and data is None
    assert err.startswith("error: ") and "to rome" in err and err.count("\n") == 1


def test_diff_says_rank_and_size(
    place: Path, edited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from surgery.checkpoint import Checkpoint

    code, data, _ = call(capsys, "diff", place / "base", edited)
    assert code == 0
    [one] = data["different"]
    key = "model.layers.1.mlp.down_proj.weight"
    old, new = (Checkpoint.open(p).read(key).double() for p in (place / "base", edited))
    assert one["key"] == key and one["rank"] == 1
    assert one["relative"] == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)
    assert one["largest"] == pytest.approx(float((new - old).abs().max()), rel=1e-4)
    assert data["same"] == len(Checkpoint.open(edited).tensors) - 1

    code, data, _ = call(capsys, "diff", edited, edited)
    assert data["different"] == [] and data["only_before"] == []


def test_rank_ignores_the_noise_of_rounding() -> None:
    """A change of rank 3 is of rank 3 after bfloat16 has scattered it over every dimension."""
    import torch

    from surgery.cli.commands.diff import numerical_rank

    torch.manual_seed(0)
    weight = torch.randn(96, 160).bfloat16()
    change = torch.randn(96, 3) @ torch.randn(3, 160)
    after = (weight.float() + change).bfloat16()
    real = after.float() - weight.float()
    assert torch.linalg.matrix_rank(real) == 96
    assert numerical_rank(real, after) == 3
    assert (numerical_rank(torch.randn(96, 160), after) or 0) > 80
    assert numerical_rank(torch.zeros(96, 160), after) == 0
    assert numerical_rank(torch.full((96, 160), torch.nan), after) is None


def test_show_knows_all_it_is_given(
    place: Path, edited: Path, delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from surgery.directions import Direction

    _, data, _ = call(capsys, "show", place / "spec.yaml")
    assert data["what"] == "spec" and data["spec"]["edits"][0]["kind"] == "rome"
    _, data, _ = call(capsys, "show", delta)
    assert data["what"] == "delta"
    assert data["tensors"]["model.layers.1.mlp.down_proj.weight"]["rank"] == 1
    _, data, _ = call(capsys, "show", place / "base")
    assert data["what"] == "checkpoint" and not data["edited"] and data["layers"] == 4
    base_id = data["id"]
    _, data, _ = call(capsys, "show", edited)
    assert data["edited"] and data["base_id"] == base_id
    assert data["edits"][0]["name"] == "to rome" and "Rome" in data["edits"][0]["does"]
    vector = torch.nn.functional.normalize(torch.ones(32), dim=0)
    Direction(vector, 2 * vector, 0 * vector, 2, -1, base_id).save(tmp_path / "d.safetensors")
    _, data, _ = call(capsys, "show", tmp_path / "d.safetensors")
    assert data["what"] == "direction" and data["layer"] == 2
    for path in (tmp_path, tmp_path / "none", place / "base" / "model.safetensors"):
        code, data, err = call(capsys, "show", path)
        assert code == 1 and data is None and err.startswith("error: ")


def test_stats(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("the sun and the moon\n\nred wine and green tea\n" * 40)
    code, data, _ = call(
        capsys, "stats", "--base", place / "base", "--text", tmp_path / "text.txt", "--layers",
        "0,2-3", "--tokens", 100,
    )  # fmt: skip
    assert code == 0
    assert sorted(data["layers"]) == ["0", "2", "3"]
    assert data["tokens"] == data["layers"]["2"]["tokens"] == 100
    assert 1 <= data["layers"]["2"]["effective_rank"] <= 48
