from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buttercup_dagster.sources.fetch import Fetched, FetchLimits, FetchPolicy, fetch
from buttercup_dagster.sources.options import DEFAULT_POLICY
from buttercup_dagster.sources.stop import Stop
from tests.support.faults import FaultServer

Download = Callable[..., Fetched]

QUICK = FetchLimits(
    connect_seconds=5,
    read_seconds=5,
    stall_seconds=5,
    backoff_seconds=0.01,
    max_retry_seconds=5,
    max_retry_after_seconds=5,
)
"""Limits under which a test does not wait for back-offs."""


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def download(tmp_path: Path) -> Download:
    """Fetch into a folder that holds nothing else; whatever happens, nothing may be left there."""
    folder = tmp_path / "downloads"
    folder.mkdir()

    def run(
        *urls: str,
        sha256: str | None = None,
        limits: FetchLimits = QUICK,
        policy: FetchPolicy = DEFAULT_POLICY,
        stop: Stop | None = None,
    ) -> Fetched:
        try:
            fetched = fetch(
                urls, folder / "archive", sha256=sha256, limits=limits, policy=policy, stop=stop
            )
        except BaseException:
            assert list(folder.iterdir()) == []
            raise
        assert list(folder.iterdir()) == [fetched.path]
        return fetched

    return run
