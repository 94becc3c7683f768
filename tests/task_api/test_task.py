"""The domain: identity, ids, what may be shown of a URL."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from task_api.task import (
    Problem,
    Source,
    SourceType,
    Task,
    TaskType,
    deadline_problem,
    normalize_uuid,
    printable,
    problems_of,
    safe_url,
    url_host,
)
from tests.support.tasks import HOUR_MS, make_task, now_ms

DAY_MS = 24 * HOUR_MS


def test_identity_ignores_urls_metadata_and_the_order_of_sources() -> None:
    repo = Source(SourceType.REPO, "a" * 64, ("http://one/",))
    diff = Source(SourceType.DIFF, "b" * 64, ("http://one/",))
    task = make_task(sources=(repo, diff))
    same = replace(
        task,
        sources=(diff, replace(repo, urls=("http://two/",))),
        metadata={},
        message_id="other",
        harnesses_included=False,
    )
    assert same.identity == task.identity


@pytest.mark.parametrize(
    "change",
    [
        {"type": TaskType.DELTA},
        {"project_name": "other"},
        {"focus": "other"},
        {"deadline_ms": 1},
        {"sources": (Source(SourceType.REPO, "b" * 64, ("http://one/",)),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_identity_depends_on_everything_else(change: dict[str, object]) -> None:
    task = make_task()
    assert make_task(task_id=task.task_id, **change).identity != task.identity


def test_task_survives_its_json_form() -> None:
    task = make_task()
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_uuid_is_lower_case_afterwards_and_nothing_else_gets_in() -> None:
    text = "123E4567-E89B-42D3-A456-426614174000"
    assert normalize_uuid(text) == text.lower()
    for wrong in (
        "",
        "../../etc",
        text.replace("-", ""),
        "{" + text + "}",
        f"urn:uuid:{text}",
        text + "\n",
        text[:-1] + "g",
    ):
        with pytest.raises(ValueError, match="is not a UUID like"):
            normalize_uuid(wrong)


@pytest.mark.parametrize(
    ("url", "shown", "host"),
    [
        ("https://u:p@h.example:8443/a%20b?sig=1#x", "https://h.example:8443/a%20b", "h.example"),
        ("http://[::1]:80/x?y", "http://[::1]:80/x", "::1"),
        ("file:///tmp/x", "file:///tmp/x", "local file"),
        ("http://h:notaport/?secret", "<unreadable URL>", "?"),
    ],
)
def test_only_the_harmless_parts_of_a_url_are_shown(url: str, shown: str, host: str) -> None:
    assert safe_url(url) == shown
    assert url_host(url) == host


def test_text_of_unknown_origin_cannot_move_a_terminals_cursor() -> None:
    assert printable("a\x1b[2Jb\n\ud800") == "a\\x1b[2Jb\\n\\ud800"
    assert printable("x" * 100, limit=10) == "x" * 10 + "…"


def test_deadlines_at_the_edges() -> None:
    now = now_ms()
    assert deadline_problem(now + 1, now) is None
    assert deadline_problem(now + 366 * DAY_MS, now) is None
    for wrong, part in (
        (now, "is in the past"),
        (0, "is in the past"),
        (-5, "is in the past"),
        (now + 366 * DAY_MS + 1, "more than 366 days ahead"),
        (now // 1000, "looks like seconds"),
        (now * 1000, "more than 366 days ahead"),
    ):
        assert part in str(deadline_problem(wrong, now))


@pytest.mark.parametrize("focus", ["curl", "libs/png", "a b", "ünï", "..curl", "a..b", "x" * 255])
def test_focus_folders_that_are_safe(focus: str) -> None:
    assert problems_of(make_task(focus=focus), now_ms=now_ms()) == []


@pytest.mark.parametrize(
    "focus",
    ["", "/abs", "..", "a/../b", "a//b", "a/", "./a", ".", "a\x00b", "a\\b", "x" * 256, "\ud800"],
)
def test_focus_folders_that_are_not(focus: str) -> None:
    (problem,) = problems_of(make_task(focus=focus), now_ms=now_ms())
    assert problem.path == ("focus",)


def test_every_problem_is_listed_with_its_place() -> None:
    task = make_task(
        type=TaskType.DELTA,
        project_name="no/slash",
        sources=(
            Source(SourceType.FUZZ_TOOLING, "zz", ("ftp://files.example/x",)),
            Source(SourceType.FUZZ_TOOLING, "a" * 64, ("http:///no-host",)),
        ),
    )
    places = [str(problem).partition(":")[0] for problem in problems_of(task, now_ms=now_ms())]
    assert places == [
        "project_name",
        "source[0].sha256",
        "source[0].url",
        "source[1].type",
        "source[1].url",
        "source",
        "source",
    ]


def test_problem_without_a_place_is_its_text() -> None:
    assert str(Problem((), "too much")) == "too much"
