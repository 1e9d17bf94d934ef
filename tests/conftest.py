"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from surgery.delta import Delta
    from surgery.model import Model

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
