from __future__ import annotations

import threading
import time

import pytest

from buttercup_dagster.sources.errors import DeadlinePassed, Stopped
from buttercup_dagster.sources.stop import Stop
from tests.support.waiting import wait_for


def test_request_wakes_and_calls_back_once() -> None:
    stop = Stop()
    stop.check()
    assert not stop.wait(0.01)
    calls: list[int] = []
    with stop.on_stop(lambda: calls.append(1)):
        waiting = threading.Thread(target=lambda: calls.append(2 if stop.wait(60) else 3))
        waiting.start()
        stop.request("first")
        stop.request("second")
        waiting.join(10)
    assert sorted(calls) == [1, 2]
    assert stop.reason == "first"
    with pytest.raises(Stopped, match="first"):
        stop.check()
    with stop.on_stop(lambda: calls.append(4)):
        assert calls[-1] == 4


def test_deadline_calls_back() -> None:
    stop = Stop(int(time.time() * 1000) + 200)
    called = threading.Event()
    with stop.on_stop(called.set):
        assert called.wait(10)
    assert stop.wait(60)
    with pytest.raises(DeadlinePassed):
        stop.check()


def test_no_timer_is_left() -> None:
    stop = Stop(int(time.time() * 1000) + 10**12)
    before = threading.active_count()
    with stop.on_stop(lambda: None):
        assert threading.active_count() == before + 1
    wait_for(lambda: threading.active_count() == before, "the end of the timer")
