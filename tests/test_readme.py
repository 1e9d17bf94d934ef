"""What the README says is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_every_command_is_in_the_table() -> None:
    from surgery.cli import command_names

    named = re.findall(r"^\| `surgery (\w+)", README, re.MULTILINE)
    assert sorted(named) == sorted(command_names())


def test_the_spec_shown_is_one() -> None:
    from surgery.spec import EditSpec

    [text] = blocks("yaml")
    kinds = [edit.kind for edit in EditSpec.parse(text).edits]
    assert kinds == ["rome", "ablate"]


def test_every_kind_is_named() -> None:
    from surgery.methods.solve import SOLVERS

    for kind in SOLVERS:
        assert f"`{kind}`" in README


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_example_is_ten_lines() -> None:
    [code] = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) == 10


def test_make_knows_the_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_output_shown_is_of_this_layout() -> None:
    """The excerpt was made by the present code: same figures, same rules."""
    from surgery.cli.summary import side_by_side

    [excerpt] = [block for block in blocks("text") if "before" in block]
    assert side_by_side([], 100)[1] in excerpt
    assert "perplexity on unrelated text" in excerpt and "KL on unrelated text" in excerpt


@pytest.mark.slow
def test_the_example_runs(smollm2: Path, tmp_path: Path) -> None:
    [code] = blocks("python")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / smollm2.name).symlink_to(smollm2, target_is_directory=True)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert "Rome" in done.stdout and "Paris" in done.stdout
    assert (tmp_path / "out" / "edited" / "model.safetensors").exists()
