"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from surgery.audit.suite import Suite
    from surgery.delta import Delta
    from surgery.model import Model
    from ui.session import Bench

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="skip the tests that need a real model")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        skip = pytest.mark.skip(reason="needs a real model, and --fast was given")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Loads the tiny random model of a family, once. Tests must leave it as it was."""
    from tiny import tiny_checkpoint

    from surgery.model import load

    @cache
    def loaded(family: str, **changes: Any) -> Model:
        folder = tmp_path_factory.mktemp("tiny")
        return load(tiny_checkpoint(folder, family, **changes), device="cpu")

    return loaded


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that starts empty, so that nothing found in the user's can make a test pass."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SURGERY_CACHE", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A tiny llama of one's own, which a test may change."""
    from tiny import tiny_checkpoint

    from surgery.model import load

    return load(tiny_checkpoint(tmp_path, "llama"), device="cpu")


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Answers "red" and "one" with no, "green" and "two" with yes. Tests must leave it as it was."""
    from behaviour import patient

    from surgery.model import load

    return load(patient(tmp_path_factory.mktemp("patient")))


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """The least an audit can ask."""
    from auditing import tiny_suite

    return tiny_suite(tmp_path / "suite")


# ---------------------------------------------------------------------- the command line, module by module
@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base, a spec and a suite."""
    from commanding import make_place

    return make_place(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def delta(place: Path) -> Path:
    """The spec of `place`, solved."""
    from surgery.cli import main

    out = place / "rome.delta.safetensors"
    spec, base = str(place / "spec.yaml"), str(place / "base")
    assert main(["solve", spec, "--base", base, "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def edited(place: Path, delta: Path) -> Path:
    """The base of `place` with `delta` applied."""
    from surgery.cli import main

    out = place / "edited"
    assert main(["apply", str(delta), "--base", str(place / "base"), "-o", str(out)]) == 0
    return out


# ---------------------------------------------------------------------- the workbench
@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny llama."""
    from tiny import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("ui"), "llama")


@pytest.fixture
def bench(checkpoint: Path) -> Bench:
    """A workbench with `checkpoint` open."""
    from ui.session import Bench

    bench = Bench()
    bench.open(checkpoint)
    return bench


# ---------------------------------------------------------------------- the real model
@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the real SmolLM2, fetched on first use. Tests must not write to it."""
    from surgery.fetch import fetch

    return fetch("smollm2-135m-instruct", ROOT / "weights" / "smollm2-135m-instruct")


@pytest.fixture(scope="session")
def real_model(smollm2: Path) -> Model:
    """SmolLM2, loaded once. Tests must leave it as it was."""
    from surgery.model import load

    return load(smollm2, device="cpu")


@pytest.fixture(scope="session")
def rome_paris(real_model: Model) -> Delta:
    """`edits/rome_paris.yaml` solved once: a real edit, for tests that are not about solving."""
    from surgery.methods import solve
    from surgery.spec import EditSpec

    return solve(EditSpec.load(ROOT / "edits" / "rome_paris.yaml"), real_model)
