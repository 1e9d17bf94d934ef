"""The gate as tests: `pytest --surgery-base DIR --surgery-edited DIR_OR_DELTA`.

With both options, a test for the verdict and one a limit are added to whatever else is collected;
nothing else is needed, an empty folder will do. A user's own tests have the fixtures `surgery_report`,
`surgery_gate` and `surgery_audit`. Without the options nothing is added.

Every pytest of an environment that has surgery installed reads this file, so it imports nothing else:
the rest comes when there is something to audit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from surgery.audit.report import Report, Verdict

_REPORT = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command line."""
    group = parser.getgroup("surgery", "the damage gate for an edited language model")
    group.addoption("--surgery-base", metavar="DIR", help="the checkpoint before the edit")
    group.addoption(
        "--surgery-edited",
        metavar="PATH",
        action="append",
        default=[],
        help="the edited folder, or a delta; several deltas in order",
    )
    group.addoption(
        "--surgery-suite", metavar="NAME", help="quick, standard, full, public or a .yaml"
    )
    group.addoption(
        "--surgery-data",
        metavar="DIR",
        action="append",
        default=[],
        help="where files that the suite names lie; may be given more than once",
    )
    group.addoption("--surgery-spec", metavar="FILE", help="facts and limits (default: the edit's)")
    group.addoption(
        "--surgery-limit",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a limit, such as kl_mean=0.05; may be given more than once",
    )
    group.addoption(
        "--surgery-report",
        metavar="FILE",
        action="append",
        default=[],
        help="write the report: JSON, or a page if it ends in .html; may be given more than once",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Mistakes on the command line stop pytest before any test, with its exit code for them (4)."""
    base, edited = config.getoption("--surgery-base"), config.getoption("--surgery-edited")
    if not base and not edited:
        return
    if not base or not edited:
        raise pytest.UsageError("--surgery-base and --surgery-edited go together")
    from pathlib import Path

    from surgery.errors import SurgeryError

    spec = config.getoption("--surgery-spec")
    for path in [base, *edited, *([spec] if spec else [])]:
        if not Path(path).exists():
            raise pytest.UsageError(f"surgery: no such file or folder: {path}")
    try:
        from surgery.audit.verdict import check_limits

        check_limits(_limits(config))
    except SurgeryError as error:
        raise pytest.UsageError(f"surgery: {error}") from None


# Before pytest deselects, so that -k works on these tests too.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for the verdict and one for every limit."""
    if not config.getoption("--surgery-base"):
        return
    import os

    from surgery.audit.verdict import LIMITS

    # Ids are shown relative to where pytest was called; its root may be far above an empty folder.
    place = os.path.relpath(config.invocation_params.dir / "surgery", config.rootpath)
    nodeid = place.replace(os.sep, "/")
    gate = SurgeryGate.from_parent(session, name="surgery", nodeid=nodeid)
    items.append(SurgeryCheck.from_parent(gate, name="gate", limit=None))
    items += [SurgeryCheck.from_parent(gate, name=name, limit=name) for name in LIMITS]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The report's table, once, at the end."""
    report = config.stash.get(_REPORT, None)
    if report is not None and not isinstance(report, Exception):
        terminalreporter.section("surgery audit")
        terminalreporter.write_line(report.text())


# ---------------------------------------------------------------------- fixtures
@pytest.fixture(scope="session")
def surgery_audit() -> Callable[..., Report]:
    """`surgery_audit(base, edited, ...)` gives a report; see `surgery.audit.audit`."""

    def audit(*args: Any, **kwargs: Any) -> Report:
        with _calm():
            from surgery.audit import audit

            return audit(*args, **kwargs)

    return audit


@pytest.fixture(scope="session")
def surgery_report(request: pytest.FixtureRequest) -> Report:
    """The report on what the command line names; the test is skipped if it names nothing."""
    return _asked_for(request.config)


@pytest.fixture
def surgery_gate(request: pytest.FixtureRequest) -> Callable[..., Verdict]:
    """`surgery_gate(report=None, **limits)` fails the test if the edit is rejected, in one line.

    report: default the one on what the command line names. limits: instead of the report's own, such
    as kl_mean=0.05. Returns the verdict, which may be a warning.
    """

    def gate(report: Report | None = None, **limits: float) -> Verdict:
        __tracebackhide__ = True
        found = report if report is not None else _asked_for(request.config)
        verdict = _again(found, limits) if limits else found.verdict
        if verdict.decision == "reject":
            pytest.fail(f"rejected: {verdict.reason}", pytrace=False)
        return verdict

    return gate


def _asked_for(config: pytest.Config) -> Report:
    if not config.getoption("--surgery-base"):
        pytest.skip("needs --surgery-base and --surgery-edited")
    return _report(config)


def _again(report: Report, limits: dict[str, float]) -> Verdict:
    """The verdict under other limits. Those somebody had set stay; the report has them beside the
    defaults."""
    from surgery.audit.verdict import LIMITS, decide

    known = {n: v for n, v in report.verdict.limits.items() if n in LIMITS}
    strict = {name: value for name, value in known.items() if value != LIMITS[name].reject}
    return decide(report, {**strict, **limits})


# ---------------------------------------------------------------------- tests of our own
class SurgeryGate(pytest.Collector):
    """Where the tests hang in the tree; they are made by the hook above."""

    def collect(self) -> list[pytest.Item]:
        return []


class SurgeryCheck(pytest.Item):
    """One limit, or the verdict as a whole."""

    def __init__(self, *, limit: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.limit = limit

    def runtest(self) -> None:
        from surgery.errors import SurgeryError

        try:
            report = _report(self.config)
        except SurgeryError as error:
            pytest.fail(str(error), pytrace=False)
        if self.limit is None:
            self.user_properties.append(("decision", report.verdict.decision))
            if report.verdict.decision == "reject":
                pytest.fail(f"rejected: {report.verdict.reason}", pytrace=False)
            return
        from surgery.audit.verdict import LIMITS

        value = LIMITS[self.limit].value(report)
        if value is None:
            pytest.skip("not measured for this edit by this suite")
        self.user_properties.append(("value", value))
        for finding in report.verdict.findings:
            if finding["name"] == self.limit and finding["level"] == "reject":
                pytest.fail(str(finding["text"]), pytrace=False)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, f"surgery: {self.name}"


# ---------------------------------------------------------------------- the audit
def _report(config: pytest.Config) -> Report:
    """The report, made when the first test needs it; a failure is the same for all of them."""
    found = config.stash.get(_REPORT, None)
    if found is None:
        try:
            with _calm():
                found = _audit(config)
        except Exception as error:
            found = error
        config.stash[_REPORT] = found
    if isinstance(found, Exception):
        raise found
    return found


def _audit(config: pytest.Config) -> Report:
    from surgery.audit import Suite, audit
    from surgery.spec import EditSpec

    def option(name: str) -> Any:
        return config.getoption(f"--surgery-{name}")

    spec = EditSpec.load(option("spec")) if option("spec") else None
    edited = option("edited")
    suite = option("suite") or (spec.checks.suite if spec else None) or "quick"
    report = audit(
        base=option("base"),
        edited=edited[0] if len(edited) == 1 else edited,
        spec=spec,
        suite=Suite.load(suite, option("data")),
        limits=_limits(config),
    )
    for file in option("report"):
        report.save(file)
    return report


def _limits(config: pytest.Config) -> dict[str, float]:
    from surgery.cli.inputs import limits_of

    given: Any = config.getoption("--surgery-limit")
    return limits_of(given)


@contextmanager
def _calm() -> Iterator[None]:
    """Other libraries' warnings are no failures of the edit, whatever the user's filters say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
