"""Signed URLs say when they stop working."""

from __future__ import annotations

import pytest

from buttercup_dagster.sources.expiry import source_expiry_ms, url_expiry_ms
from task_api.task import Source, SourceType

NOON_MS = 1_795_521_600_000  # 2026-11-24 12:00:00 UTC


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Date=20261124T110000Z&X-Amz-Expires=3600&X-Amz-Signature=x",
        "X-Goog-Date=20261124T115959Z&X-Goog-Expires=1",
        "Signature=x&Expires=1795521600",
        "sv=2024&se=2026-11-24T12%3A00%3A00Z&sig=x",
        "se=2026-11-24",
    ],
)
def test_expiry_is_read_from_the_forms_that_stores_use(query: str) -> None:
    moment = url_expiry_ms(f"https://files.example/repo.tar.gz?{query}")
    assert moment in {NOON_MS, NOON_MS - 12 * 3_600_000}


@pytest.mark.parametrize(
    "url",
    [
        "https://files.example/repo.tar.gz",
        "https://files.example/repo.tar.gz?token=x",
        "https://files.example/?Expires=soon",
        "https://files.example/?Expires=99999999999999999999",
        "https://files.example/?X-Amz-Date=yesterday&X-Amz-Expires=1",
        "http://h:port/?Expires=1795521600",
    ],
)
def test_other_urls_say_nothing(url: str) -> None:
    assert url_expiry_ms(url) is None


def test_source_works_as_long_as_its_last_url() -> None:
    early, late = (f"https://files.example/?Expires={seconds}" for seconds in (100, 200))
    unsigned = "https://files.example/"

    def expiry(*urls: str) -> int | None:
        return source_expiry_ms(Source(SourceType.REPO, "a" * 64, urls))

    assert expiry(late, early) == 200_000
    assert expiry(early, unsigned) is None
    assert expiry() is None
