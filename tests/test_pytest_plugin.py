"""The gate as a pytest plugin: in an empty folder, in a user's own tests, and out of the way otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import random_delta, tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SUITE = """
version: 1
name: least
texts:
  - {kind: words, file: text.txt, tokens: 16}
edit: {neighbours: 1, plus: false, generations: 2}
"""
# The hardest filter there is: a plugin that warns would fail.
HARD = "[pytest]\naddopts = --strict-markers --strict-config\nfilterwarnings = error\n"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an edit that does nothing to speak of, one that destroys, and a suite.

    `site/` is what installing leaves behind, so that pytest finds the plugin by its entry point as
    pyproject.toml declares it.
    """
    from surgery.checkpoint import Checkpoint
    from surgery.delta import save_delta
    from surgery.stack import apply

    folder = tmp_path_factory.mktemp("gate")
    base = tiny_checkpoint(folder, "llama")
    (folder / "base").symlink_to(base, target_is_directory=True)
    key = "model.layers.1.mlp.down_proj.weight"
    good = random_delta(Checkpoint.open(base), [key], 0, 1e-5)
    bad = random_delta(Checkpoint.open(base), [key], 1, 2.0)
    apply([good], base, folder / "good")
    save_delta(good, folder / "good.delta.safetensors")
    save_delta(bad, folder / "bad.delta.safetensors")
    (folder / "text.txt").write_text("the capital of France is Paris\n\none two three four five")
    (folder / "suite.yaml").write_text(SUITE)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    info = folder / "site" / "surgery_gate-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: surgery-gate\nVersion: 0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in declared["pytest11"].items())
    (info / "entry_points.txt").write_text(f"[pytest11]\n{lines}")
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Run:
    """Run pytest in an empty folder, in a process of its own."""
    cwd = tmp_path / "empty"
    cwd.mkdir()

    def call(*words: str, **files: str) -> subprocess.CompletedProcess[str]:
        for name, text in files.items():
            (cwd / name.replace("__", ".")).write_text(text)
        environment = {
            **os.environ,
            "PYTHONPATH": f"{place / 'site'}{os.pathsep}{ROOT}",
            "SURGERY_CACHE": str(place / "cache"),
            "SURGERY_QUIET": "1",
        }
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip

    return call


def options(place: Path, edited: str, *more: str) -> list[str]:
    return [
        "--surgery-base", str(place / "base"), "--surgery-edited", str(place / edited),
        "--surgery-suite", str(place / "suite.yaml"), *more,
    ]  # fmt: skip


# ---------------------------------------------------------------------- an empty folder
def test_a_good_edit_passes_in_an_empty_folder(place: Path, run: Run, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run("-v", *options(place, "good", "--surgery-report", str(report)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nsurgery::gate PASSED" in done.stdout and "\nsurgery::kl_mean PASSED" in done.stdout
    assert "\nsurgery::paraphrase SKIPPED" in done.stdout  # the edit sets no fact
    assert "ACCEPTED" in done.stdout and "KL on unrelated text" in done.stdout

    from surgery.audit.report import Report

    assert Report.load(report).verdict.decision == "accept"


def test_a_bad_one_fails_with_the_reason_in_one_line(place: Path, run: Run) -> None:
    done = run("-q", *options(place, "bad.delta.safetensors"), pytest__ini=HARD)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failed, done.stdout + done.stderr
    (gate,) = [line for line in failed if line.startswith("FAILED surgery::gate - ")]
    assert "rejected: " in gate
    assert any(line.startswith("FAILED surgery::kl_mean - ") for line in failed)
    assert "Traceback" not in done.stdout and "REJECTED" in done.stdout


def test_limits_and_selection(place: Path, run: Run) -> None:
    strict = options(place, "good.delta.safetensors", "--surgery-limit", "kl_mean=1e-15")
    done = run("-q", *strict, "-k", "kl_mean")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout and "mean KL on unrelated text" in done.stdout


# ---------------------------------------------------------------------- a user's own tests
TESTS = """
import pytest

def test_report(surgery_report):
    assert surgery_report.value("kl_mean") < 1e-3

def test_gate(surgery_gate):
    assert surgery_gate().decision == "accept"

def test_too_strict(surgery_gate):
    with pytest.raises(pytest.fail.Exception, match="rejected: mean KL on unrelated text"):
        surgery_gate(kl_mean=1e-15)

def test_another(surgery_audit, surgery_gate):
    report = surgery_audit({base!r}, {bad!r}, suite={suite!r})
    with pytest.raises(pytest.fail.Exception, match="rejected: "):
        surgery_gate(report)
    limits = dict.fromkeys(report.verdict.limits, 1e9) | {{"success": 0, "paraphrase": 0}}
    assert surgery_gate(report, **limits).decision == "accept"
"""


def test_the_fixtures(place: Path, run: Run) -> None:
    names = {
        "base": str(place / "base"),
        "bad": str(place / "bad.delta.safetensors"),
        "suite": str(place / "suite.yaml"),
    }
    own = TESTS.format(**names)
    done = run("-v", *options(place, "good"), pytest__ini=HARD, test_own__py=own)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("report", "gate", "too_strict", "another"):
        assert f"test_own.py::test_{name} PASSED" in done.stdout
    assert "surgery::gate PASSED" in done.stdout


# ---------------------------------------------------------------------- out of the way
ALONE = """
import sys

def test_nothing_was_imported():
    heavy = {"torch", "transformers", "numpy", "pydantic", "surgery.audit"}
    assert "surgery.pytest_plugin" in sys.modules and not heavy & set(sys.modules)

def test_without_options(surgery_report):
    raise AssertionError("not reached")

def test_gate_without_options(surgery_gate):
    surgery_gate()
"""


def test_it_costs_nothing_without_the_options(run: Run) -> None:
    done = run("-v", "-rs", pytest__ini=HARD, test_own__py=ALONE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 2 skipped" in done.stdout and "surgery::" not in done.stdout
    assert "needs --surgery-base and --surgery-edited" in done.stdout


def test_an_empty_run_stays_an_empty_run(run: Run) -> None:
    assert run("-q").returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def test_collecting_audits_nothing(place: Path, run: Run) -> None:
    done = run("-q", "--collect-only", *options(place, "good"))
    assert done.returncode == 0 and "surgery::gate" in done.stdout
    assert "surgery audit" not in done.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        (["--surgery-base", "."], "go together"),
        (["--surgery-base", ".", "--surgery-edited", "nowhere"], "no such file or folder: nowhere"),
        (
            ["--surgery-base", ".", "--surgery-edited", ".", "--surgery-limit", "kl_maen=1"],
            "unknown limit 'kl_maen'",
        ),
    ],
)
def test_mistakes_on_the_command_line(run: Run, words: list[str], message: str) -> None:
    done = run(*words)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr


def test_what_is_no_checkpoint_fails_in_one_line(run: Run) -> None:
    done = run("-q", "--surgery-base", ".", "--surgery-edited", ".", "-k", "gate")
    assert done.returncode == 1
    (failed,) = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert "surgery::gate" in failed and "Traceback" not in done.stdout
