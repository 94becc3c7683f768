"""Running stacks for the end-to-end tests; starting one takes longer than most of them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.e2e.stack import Stack
from tests.support.postgres import database

SETUPS = [
    pytest.param("warm-worker", id="warm-worker"),
    pytest.param("plain-dagster", id="plain-dagster", marks=pytest.mark.slow),
    pytest.param("many-machines", id="many-machines", marks=pytest.mark.slow),
]


@pytest.fixture(scope="session", params=SETUPS)
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Redis, the task server, Dagster and a server of sources, all running.

    With a warm worker, as `buttercup up` runs it; with `dagster dev` alone; and with a warm worker
    on the instance of many machines.
    """
    warm = request.param != "plain-dagster"
    with contextlib.ExitStack() as opened:
        made = opened.enter_context(database()) if request.param == "many-machines" else None
        folder = tmp_path_factory.mktemp("e2e")
        yield opened.enter_context(Stack(folder, warm=warm, database=made))


@pytest.fixture(scope="module")
def warm_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with a warm worker, for the tests that do things to it."""
    with Stack(tmp_path_factory.mktemp("warm"), warm=True) as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the ends of the processes' logs with a failure."""
    report = yield
    found = getattr(item, "funcargs", {})
    running: Any = found.get("stack") or found.get("warm_stack")
    if report.failed and isinstance(running, Stack):
        report.sections.append(("logs of the processes", running.logs()))
    return report
