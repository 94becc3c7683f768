"""Processes that are kept running, and all of them stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from buttercup_dagster.local.errors import ServiceFailed
from buttercup_dagster.local.supervisor import Service, Supervisor
from tests.support.waiting import wait_for

WORKS = "import sys, time, pathlib; pathlib.Path(sys.argv[1]).touch(); print('working', flush=True)"


class Shown:
    """What a person sees."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, name: str, text: str) -> None:
        self.lines.append((name, text))

    def of(self, name: str) -> list[str]:
        return [text for who, text in self.lines if who == name]


def service(tmp_path: Path, code: str, name: str = "worker", seconds: float = 20) -> Service:
    """A Python process that is healthy once it has made its file."""
    file = tmp_path / f"{name}.healthy"
    return Service(
        name,
        [sys.executable, "-c", code, str(file)],
        os.environ,
        file.exists,
        start_seconds=seconds,
    )


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().split(") ")[1][0] != "Z"


def watching(supervisor: Supervisor, until: Callable[[], bool]) -> Callable[[], bool]:
    """A question for the supervisor that ends its watch once `until` is true, or after a while."""
    end = threading.Event()
    threading.Timer(30, end.set).start()
    return lambda: end.is_set() or until()


def test_everything_is_stopped_with_all_its_children(tmp_path: Path) -> None:
    shown = Shown()
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"print('child', child.pid, flush=True)\n{WORKS}\ntime.sleep(600)"
    )
    with Supervisor(shown, lambda: False) as supervisor:
        assert supervisor.start(service(tmp_path, code))
        processes = list(supervisor.processes().values())
        (line,) = wait_for(
            lambda: [text for text in shown.of("worker") if text.startswith("child")], "its child"
        )
        processes.append(int(line.split()[1]))
        assert all(map(alive, processes))
    wait_for(lambda: not any(map(alive, processes)), "all gone")
    assert "working" in shown.of("worker")


def test_process_that_ignores_the_request_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buttercup_dagster.local.supervisor.STOP_SECONDS", 0.5)
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{WORKS}\ntime.sleep(600)"
    with Supervisor(Shown(), lambda: False) as supervisor:
        assert supervisor.start(service(tmp_path, code))
        (process,) = supervisor.processes().values()
    assert not alive(process)


def test_process_that_needs_longer_to_end_gets_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buttercup_dagster.local.supervisor.STOP_SECONDS", 0.01)
    done = tmp_path / "done"
    code = (
        "import pathlib, signal\n"
        "def end(*_):\n"
        "    time.sleep(0.5)\n"
        f"    pathlib.Path({str(done)!r}).touch()\n"
        "    raise SystemExit\n"
        f"signal.signal(signal.SIGTERM, end)\n{WORKS}\ntime.sleep(600)"
    )
    with Supervisor(Shown(), lambda: False) as supervisor:
        assert supervisor.start(replace(service(tmp_path, code), stop_seconds=20.0))
    assert done.exists()


def test_what_nobody_needs_is_told_to_end_at_the_same_time(tmp_path: Path) -> None:
    # Each ends in an orderly way only once the other has been told to end, too.
    code = (
        "import os, signal\n"
        "def end(*_):\n"
        "    mine, others = (os.environ[name] for name in ('MINE', 'OTHERS'))\n"
        "    pathlib.Path(mine).touch()\n"
        "    while not os.path.exists(others):\n"
        "        time.sleep(0.01)\n"
        "    pathlib.Path(mine + '.ended').touch()\n"
        "    raise SystemExit\n"
        f"signal.signal(signal.SIGTERM, end)\n{WORKS}\ntime.sleep(600)"
    )
    one, two, needed = (tmp_path / name for name in ("one", "two", "needed"))

    def unneeded(mine: Path, others: Path) -> Service:
        variables = {**os.environ, "MINE": str(mine), "OTHERS": str(others)}
        return replace(
            service(tmp_path, code, mine.name),
            environment=variables,
            needed=False,
            stop_seconds=20.0,
        )

    last = (
        f"import os, signal\ndef end(*_):\n    pathlib.Path({str(needed)!r}).write_text("
        f"str(all(map(os.path.exists, {[f'{one}.ended', f'{two}.ended']!r}))))\n"
        f"    raise SystemExit\nsignal.signal(signal.SIGTERM, end)\n{WORKS}\ntime.sleep(600)"
    )
    with Supervisor(Shown(), lambda: False) as supervisor:
        assert supervisor.start(
            service(tmp_path, last, "needed-by-others"), unneeded(one, two), unneeded(two, one)
        )
    assert needed.read_text() == "True"


def test_what_ends_is_started_again(tmp_path: Path) -> None:
    shown = Shown()
    states: list[bool] = []
    supervisor = Supervisor(shown, lambda: all(states) and bool(states))
    with supervisor:
        assert supervisor.start(service(tmp_path, f"{WORKS}; time.sleep(600)"))
        (first,) = supervisor.processes().values()
        os.kill(first, signal.SIGKILL)

        def again() -> bool:
            now = supervisor.processes().get("worker")
            return now is not None and now != first

        supervisor._stop = watching(supervisor, again)
        supervisor.watch()
        assert again()
    (line,) = shown.of("")
    assert line == "worker was ended by signal 9; starting it again in 0.5 s"


def test_what_never_comes_up_is_told_with_its_last_lines(tmp_path: Path) -> None:
    shown = Shown()
    code = "import sys; print('no such option', flush=True); sys.exit(3)"
    with (
        Supervisor(shown, lambda: False) as supervisor,
        pytest.raises(ServiceFailed, match="worker does not start: it ended with status 3") as fail,
    ):
        supervisor.start(service(tmp_path, code))
    assert str(fail.value).endswith("its last lines:\n  no such option")


def test_what_does_not_become_healthy_is_told(tmp_path: Path) -> None:
    with (
        Supervisor(Shown(), lambda: False) as supervisor,
        pytest.raises(ServiceFailed, match="worker is not healthy after"),
    ):
        supervisor.start(service(tmp_path, "import time; time.sleep(600)", seconds=0.5))
    assert supervisor.processes() == {}


def test_stop_during_the_start(tmp_path: Path) -> None:
    with Supervisor(Shown(), lambda: True) as supervisor:
        assert not supervisor.start(service(tmp_path, "import time; time.sleep(600)"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl(2)")
def test_no_process_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from tests.buttercup_dagster.local.test_supervisor import WORKS, service
from buttercup_dagster.local.supervisor import Supervisor
supervisor = Supervisor(lambda *_: None, lambda: False)
supervisor.start(service(Path({str(tmp_path)!r}), WORKS + "; time.sleep(600)"))
print(supervisor.processes()["worker"], flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert alive(worker)
        parent.kill()
    wait_for(lambda: not alive(worker), "the worker ends too")
