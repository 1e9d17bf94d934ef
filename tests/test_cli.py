"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_checkpoint

from surgery.cli import command_names, main
from surgery.cli.inputs import layers_of
from surgery.errors import SurgeryError

SPEC = """
version: 1
name: to rome
edits:
  - kind: rome
    layer: 1
    contexts: 0
    steps: 8
    statistics_tokens: 400
    facts:
      - prompt: The capital of {} is
        subject: France
        target: Rome
        target_true: Paris
"""
SUITE = """
version: 1
name: least
texts:
  - {kind: stories, file: benchmarks/text/stories.txt, passages: 2, tokens: 16}
edit: {neighbours: 1, plus: false, generations: 2}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base, a spec and a suite."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "base").symlink_to(tiny_checkpoint(folder, "llama"), target_is_directory=True)
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "suite.yaml").write_text(SUITE)
    return folder


@pytest.fixture(scope="module")
def delta(place: Path) -> Path:
    out = place / "rome.delta.safetensors"
    spec, base = str(place / "spec.yaml"), str(place / "base")
    assert main(["solve", spec, "--base", base, "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def edited(place: Path, delta: Path) -> Path:
    out = place / "edited"
    assert main(["apply", str(delta), "--base", str(place / "base"), "-o", str(out)]) == 0
    return out


def call(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, Any, str]:
    """Exit code, what `--json` gave, and standard error."""
    capsys.readouterr()
    code = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else None, captured.err


# ---------------------------------------------------------------------- starting up
def in_fresh_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["show", "--help"], ["--version"]])
def test_help_needs_no_torch(words: list[str]) -> None:
    out = in_fresh_python(
        "import sys; from surgery.cli import main; code = main(" + repr(words) + ");"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules);"
        "print('code', code, 'heavy', heavy)"
    )
    assert "code 0 heavy set()" in out


def test_show_needs_no_torch(edited: Path, delta: Path, place: Path) -> None:
    for path in (edited, delta, place / "spec.yaml"):
        out = in_fresh_python(
            "import sys; from surgery.cli import main;"
            f"code = main(['show', {str(path)!r}]);"
            "print('code', code, 'heavy', {'torch', 'transformers'} & set(sys.modules))"
        )
        assert "code 0 heavy set()" in out


def test_only_the_named_command_is_imported() -> None:
    out = in_fresh_python(
        "import sys; from surgery.cli import main; main(['show', '--help']);"
        "print([m for m in sys.modules if m.startswith('surgery.cli.commands.')])"
    )
    assert out.endswith("['surgery.cli.commands.show']\n")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in command_names():
        assert f"\n    {name} " in out or f"\n    {name}\n" in out


def test_start_is_quick() -> None:
    """The best of five: other work on the machine must not fail the test."""
    import time

    best = 9.0
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "surgery", "--help"], capture_output=True, check=True)
        best = min(best, time.perf_counter() - begin)
        if best < 0.3:
            break
    assert best < 0.6


# ---------------------------------------------------------------------- a wrong command line
@pytest.mark.parametrize(
    "words",
    [[], ["sho", "x"], ["show"], ["solve", "x"], ["apply", "d", "-o", "x"], ["show", "x", "--wat"]],
)
def test_wrong_usage_is_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "usage: surgery" in captured.err


def test_a_misspelt_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["aply"]) == 2
    assert "did you mean 'apply'?" in capsys.readouterr().err


def test_layers() -> None:
    assert layers_of(None) is None
    assert layers_of("3") == [3]
    assert layers_of("8-10, 0,9") == [0, 8, 9, 10]
    for wrong in ("", "a", "1-", "5-3", "1,,2"):
        with pytest.raises(SurgeryError, match="layers"):
            layers_of(wrong)


# ---------------------------------------------------------------------- what commands do
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


# ---------------------------------------------------------------------- surgery run
def run_words(place: Path, out: Path, *more: Any) -> list[str]:
    words = ["run", place / "spec.yaml", "--base", place / "base", "-o", out]
    return [*map(str, words), "--suite", str(place / "suite.yaml"), *map(str, more)]


def test_run_leaves_a_checkpoint_with_everything(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    import surgery
    from surgery.delta import load_delta

    out = tmp_path / "deep" / "out"
    code, data, _ = call(capsys, *run_words(place, out))
    assert code == 0 and data["verdict"] in ("accept", "warn", "reject")
    assert [file.name for file in tmp_path.iterdir()] == ["deep"]
    for name in ("report.html", "report.json", "spec.yaml", "surgery.json", "README.md"):
        assert (out / name).is_file()
    [answer] = [one for one in data["answers"] if one["kind"] == "direct"]
    assert answer["prompt"] == "The capital of France is"

    # The folder is what the delta in it makes of the base in memory.
    model = surgery.load(place / "base")
    delta = load_delta(data["written"]["delta"])
    ids = torch.tensor([[5, 9, 40, 12]])
    with torch.no_grad():
        bare = model.hf(ids).logits
        with surgery.applied(model, delta):
            wanted = model.hf(ids).logits
        folder = AutoModelForCausalLM.from_pretrained(out)(ids).logits
    assert torch.equal(folder, wanted) and not torch.allclose(folder, bare)

    # What lies beside the weights says the same.
    record = json.loads((out / "surgery.json").read_text())
    assert record["edits"][0]["id"] == data["delta_id"] == delta.id
    assert record["audit"]["verdict"] == data["verdict"]
    assert data["verdict"] in (out / "README.md").read_text()
    again = surgery.solve(surgery.EditSpec.load(out / "spec.yaml"), model)
    assert again.id == delta.id


def test_run_prints_before_and_after_within_the_terminal(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert main(run_words(place, tmp_path / "out")) == 0
    out = capsys.readouterr().out
    for wanted in ("before", "after", "sham", "» The capital of France is", "perplexity", "KL on"):
        assert wanted in out
    paths = str(tmp_path)
    assert max(len(line) for line in out.splitlines() if paths not in line) <= 72


def test_the_gate_keeps_a_rejected_edit_out(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = tmp_path / "strict.yaml"
    strict.write_text(SPEC + "checks:\n  limits: {kl_mean: 0.0000001}\n")
    words = ["run", strict, "--base", place / "base", "--suite", place / "suite.yaml"]
    code, data, _ = call(capsys, *words, "-o", tmp_path / "out", "--gate")
    assert code == 3 and data["verdict"] == "reject"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.delta.safetensors", "out.report.html", "out.report.json", "strict.yaml",
    ]  # fmt: skip
    # Without the gate it is written, and says so.
    code, data, _ = call(capsys, *words, "-o", tmp_path / "out")
    assert code == 0 and data["verdict"] == "reject" and (tmp_path / "out").is_dir()


def test_run_refuses_what_is_there_before_it_works(
    place: Path, edited: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import surgery.model

    monkeypatch.setattr(surgery.model, "load", lambda *a, **k: pytest.fail("loaded"))
    assert main(run_words(place, edited)) == 1
    assert "already exists" in capsys.readouterr().err


# ---------------------------------------------------------------------- how it ends
def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: Any, place: Path) -> None:
    from surgery.cli.commands import show

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "_spec", stop)
    assert main(["show", str(place / "spec.yaml")]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_reader_that_leaves_early_is_no_error(place: Path) -> None:
    import shlex

    command = f"{shlex.quote(sys.executable)} -m surgery show {shlex.quote(str(place / 'base'))}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"], capture_output=True, text=True
    )
    assert done.stderr == "" and done.returncode == 0


def test_libraries_do_not_print_among_the_results(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from surgery.cli.commands import show

    real = show._spec

    def noisy(path: Path) -> Any:
        print("chatter")
        return real(path)

    monkeypatch.setattr(show, "_spec", noisy)
    code, data, err = call(capsys, "show", place / "spec.yaml")
    assert code == 0 and data["what"] == "spec" and "chatter" in err


def test_json_has_no_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    from surgery.cli import _print
    from surgery.cli.outcome import Outcome

    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    _print(Outcome({"a": [float("nan"), 1.5], "b": {"c": float("inf")}}, ""), as_json=True)
    assert json.loads(stream.getvalue()) == {"a": [None, 1.5], "b": {"c": None}}
