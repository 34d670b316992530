"""The pytest plugin: fixtures for tests that fail when robustness drops.

    def test_the_network_holds(assert_robust):
        assert_robust(model, (x, y), threat=Linf(0.1), at_least=0.8)

pytest finds the plugin once the package is installed. Nothing heavy is imported before a fixture is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import pytest

if TYPE_CHECKING:
    from art_defenses_ext.evaluation.report.report import Report
    from art_defenses_ext.testing.assertions import Suite

NOTES = "robustness"
"""Name of the property that carries a test's notes from a worker to the terminal."""

P = ParamSpec("P")
Assertion = Callable[..., "Report"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the command line."""
    group = parser.getgroup("robustness", "robustness against adversarial examples")
    group.addoption("--robustness-attacks", metavar="SET", help="attack suite that replaces those of the tests")
    group.addoption(
        "--robustness-samples", metavar="N", type=int, help="number of images of each test, from the first on"
    )
    group.addoption("--robustness-device", metavar="DEVICE", help="cpu or cuda instead of the classifiers' own device")
    group.addoption("--robustness-report", metavar="DIR", type=Path, help="keep each test's report in a folder of DIR")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker ``robustness``."""
    config.addinivalue_line("markers", "robustness: attacks a network; may take long")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a fixture of this plugin, so that ``-m "not robustness"`` leaves them out."""
    for item in items:
        if FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("robustness")


@pytest.fixture
def robustness(request: pytest.FixtureRequest) -> Suite:
    """The settings that the other fixtures share."""
    from art_defenses_ext.base.declared import accepted
    from art_defenses_ext.base.errors import InputError
    from art_defenses_ext.base.validation import check_count
    from art_defenses_ext.evaluation.config import NamedAttacks
    from art_defenses_ext.testing.assertions import Suite

    option = request.config.getoption
    attacks, samples = option("--robustness-attacks"), option("--robustness-samples")
    try:
        if attacks is not None:
            accepted(NamedAttacks, "--robustness-attacks", attacks)
        if samples is not None:
            check_count("--robustness-samples", samples)
    except InputError as error:
        raise pytest.UsageError(str(error)) from None
    suite = Suite(
        cache=_cache(request.config),
        attacks=attacks,
        samples=samples,
        device=option("--robustness-device"),
        reports=option("--robustness-report"),
    )
    request.node.user_properties.append((NOTES, suite.notes))
    return suite


@pytest.fixture
def assert_robust(robustness: Suite, request: pytest.FixtureRequest) -> Assertion:
    """``assert_robust(model, (x, y), threat=Linf(0.1), at_least=0.8)``: see ``Suite.is_robust``."""
    return _named(robustness.is_robust, request)


@pytest.fixture
def assert_detects(robustness: Suite, request: pytest.FixtureRequest) -> Assertion:
    """``assert_detects(model, detector, (x, y), threat=Linf(0.1), at_least=0.9)``: see ``Suite.detects``."""
    return _named(robustness.detects, request)


@pytest.fixture
def assert_no_masking(robustness: Suite, request: pytest.FixtureRequest) -> Assertion:
    """``assert_no_masking(model, (x, y), threat=Linf(0.1))``: see ``Suite.masks_nothing``."""
    return _named(robustness.masks_nothing, request)


@pytest.fixture
def assert_not_worse_than(robustness: Suite, request: pytest.FixtureRequest) -> Assertion:
    """``assert_not_worse_than("baseline", model, (x, y))``: see ``Suite.is_not_worse_than``."""
    return _named(robustness.is_not_worse_than, request)


FIXTURES = frozenset({"robustness", "assert_robust", "assert_detects", "assert_no_masking", "assert_not_worse_than"})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line for each assertion, passed or failed."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if getattr(report, "when", None) == "call"
    ]
    lines = [line for report in reports for name, notes in report.user_properties if name == NOTES for line in notes]
    if lines:
        terminalreporter.section("robustness")
        for line in lines:
            terminalreporter.line(line)


def _named(assertion: Callable[Concatenate[str, P], Report], request: pytest.FixtureRequest) -> Callable[P, Report]:
    """Return the assertion with the name of the test, numbered if a test makes several."""
    name, number = re.sub(r"[^\w.-]+", "_", request.node.nodeid), count(1)

    def named(*arguments: P.args, **options: P.kwargs) -> Report:
        __tracebackhide__ = True
        nth = next(number)
        return assertion(name if nth == 1 else f"{name}-{nth}", *arguments, **options)

    return named


def _cache(config: pytest.Config) -> Path:
    """Return the folder of finished evaluations: in pytest's cache, or temporary if that is switched off."""
    if config.pluginmanager.hasplugin("cacheprovider"):
        try:
            return Path(config.cache.mkdir("robustness"))
        except OSError:  # noted when an assertion is checked
            return Path(str(config.cache._cachedir)) / "d" / "robustness"
    import tempfile

    return Path(tempfile.mkdtemp(prefix="robustness-"))
