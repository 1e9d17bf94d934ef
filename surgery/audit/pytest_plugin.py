"""The gate as tests: `pytest --surgery-base DIR --surgery-edited DIR_OR_DELTA`.

With both options, one test a limit is added to whatever else is collected (nothing else is needed: an
empty folder will do). Without them, nothing happens, except that tests may ask for the fixture
`surgery_audit`, a function that makes a report.

Nothing heavy is imported until a test runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_REPORT = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command line."""
    group = parser.getgroup("surgery", "audit of an edited language model")
    group.addoption("--surgery-base", metavar="DIR", help="the checkpoint before the edit")
    group.addoption("--surgery-edited", metavar="DIR", help="the edited folder, or a delta file")
    group.addoption("--surgery-spec", metavar="FILE", help="the spec: facts to ask about, limits")
    group.addoption("--surgery-suite", metavar="NAME", default=None, help="default: quick")
    group.addoption("--surgery-html", metavar="FILE", help="write the report as a page")
    group.addoption(
        "--surgery-limit",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a limit, such as kl_mean=0.05; may be given more than once",
    )


def pytest_configure(config: pytest.Config) -> None:
    """One option without the other is a mistake."""
    if bool(config.getoption("--surgery-base")) != bool(config.getoption("--surgery-edited")):
        raise pytest.UsageError("--surgery-base and --surgery-edited go together")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for the verdict and one for every limit."""
    if not config.getoption("--surgery-base"):
        return
    from surgery.audit.verdict import LIMITS

    node = _Gate.from_parent(session, name="surgery")
    items.append(_Check.from_parent(node, name="verdict", limit=None))
    items += [_Check.from_parent(node, name=name, limit=name) for name in LIMITS]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The report's table, once, at the end."""
    report = config.stash.get(_REPORT, None)
    if report is not None and not isinstance(report, Exception):
        terminalreporter.section("surgery audit")
        terminalreporter.write_line(report.text())


@pytest.fixture(scope="session")
def surgery_audit() -> Callable[..., Any]:
    """`surgery_audit(base, edited, ...)` gives a report; see `surgery.audit.audit`."""
    from surgery.audit import audit

    return audit


class _Gate(pytest.Collector):
    """Where the tests hang in the tree; they are made by the hook above."""

    def collect(self) -> list[pytest.Item]:
        return []


class _Check(pytest.Item):
    """One limit, or the verdict as a whole."""

    def __init__(self, *, limit: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.limit = limit

    def runtest(self) -> None:
        report = _report(self.config)
        if self.limit is None:
            if report.verdict.decision == "reject":
                raise _Rejected(report.verdict.reason)
            return
        for finding in report.verdict.findings:
            if finding["name"] == self.limit and finding["level"] == "reject":
                raise _Rejected(str(finding["text"]))

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        from surgery.errors import SurgeryError

        if isinstance(excinfo.value, _Rejected | SurgeryError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, f"surgery: {self.name}"


class _Rejected(Exception):
    """The edit is beyond a limit."""


def _report(config: pytest.Config) -> Any:
    """The report, made when the first test needs it; a failure is the same for all of them."""
    found = config.stash.get(_REPORT, None)
    if found is None:
        try:
            found = _audit(config)
        except Exception as error:
            found = error
        config.stash[_REPORT] = found
    if isinstance(found, Exception):
        raise found
    return found


def _audit(config: pytest.Config) -> Any:
    from surgery.audit import audit
    from surgery.cli.commands.audit import limits_of
    from surgery.spec import EditSpec

    def option(name: str) -> Any:
        return config.getoption(f"--surgery-{name}")

    loaded = EditSpec.load(option("spec")) if option("spec") else None
    report = audit(
        base=option("base"),
        edited=option("edited"),
        spec=loaded,
        suite=option("suite") or (loaded.checks.suite if loaded else None) or "quick",
        limits=limits_of(option("limit")),
    )
    if option("html"):
        report.save(option("html"))
    return report
