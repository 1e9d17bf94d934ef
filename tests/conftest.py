"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

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
def smollm2() -> Path:
    """The folder of the real SmolLM2, fetched on first use. Tests must not write to it."""
    from surgery.fetch import fetch

    return fetch("smollm2-135m-instruct", ROOT / "weights" / "smollm2-135m-instruct")
