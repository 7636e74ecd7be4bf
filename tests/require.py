"""Pytest plugin: turns skips into failures where nothing may be skipped.

`CSR_REQUIRE` names what must be there, separated by commas: a test that skips for a reason naming one of
them (case and punctuation aside: `cifar10` is found in "CIFAR-10 is not at …") fails instead.
`CSR_REQUIRE=all` lets no test skip, except for a reason naming something in `CSR_MAY_SKIP`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator

import pytest


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _names(variable: str) -> list[str]:
    return [name for name in map(_plain, os.environ.get(variable, "").split(",")) if name]


def is_forbidden(reason: str) -> bool:
    required, reason = _names("CSR_REQUIRE"), _plain(reason)
    if "all" in required:
        return not any(name in reason for name in _names("CSR_MAY_SKIP"))
    return any(name in reason for name in required)


def _fail_forbidden_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    # An expected failure is reported as a skip too, but it ran.
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if is_forbidden(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped, but CSR_REQUIRE={os.environ['CSR_REQUIRE']} says it must run: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_forbidden_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_forbidden_skip(report)
    return report
