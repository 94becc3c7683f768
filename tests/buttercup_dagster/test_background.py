"""Work in a thread: whoever is interrupted waits until it has cleaned up."""

from __future__ import annotations

import threading

import pytest

from buttercup_dagster.background import in_thread
from buttercup_dagster.sources.errors import Stopped
from buttercup_dagster.sources.stop import Stop


def interrupt(_: str) -> None:
    raise KeyboardInterrupt


def test_result_and_lines_are_passed_on() -> None:
    said: list[str] = []

    def work(log: object) -> int:
        assert callable(log)
        log("half")
        return 42

    assert in_thread(work, stop=Stop(), log=said.append) == 42
    assert said == ["half"]


def test_error_is_passed_on() -> None:
    def work(_: object) -> None:
        raise Stopped("no more")

    with pytest.raises(Stopped, match="no more"):
        in_thread(work, stop=Stop(), log=lambda _: None)


@pytest.mark.parametrize("where", ["while it waits", "while the thread starts"])
def test_interrupted_caller_waits_for_the_clean_up(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()
    cleaned_up: list[str] = []

    def work(log: object) -> None:
        assert callable(log)
        log("begun")
        assert stop.wait(20)
        cleaned_up.append(stop.reason)

    if where == "while the thread starts":
        start = threading.Thread.start

        def interrupted(thread: threading.Thread) -> None:
            start(thread)
            if thread.name == "work":
                raise KeyboardInterrupt

        monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_thread(work, stop=stop, log=interrupt)
    assert cleaned_up == ["the run was interrupted"]


def test_thread_that_cannot_start_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        in_thread(lambda _: None, stop=Stop(), log=lambda _: None)
