"""One attempt at a task: start it, keep its lease, do the work, and say how it ended.

A thread beside the work renews the lease; when the registry refuses, somebody cancelled the task
or took it over, and the work stops. Another thread reports how far the sources are. So a Redis
that is away stops nothing: what has to be recorded waits for it, before the folder is published.

    ButtercupError
    ├── Withdrawn       the task is no longer this attempt's; nothing failed
    └── AttemptFailed   the attempt failed and the registry knows
"""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from buttercup_dagster.background import Log, in_thread
from buttercup_dagster.engine import Engine
from buttercup_dagster.sources.errors import DeadlinePassed, SourceError, Stopped
from buttercup_dagster.sources.expiry import source_expiry_ms
from buttercup_dagster.sources.prepare import Prepared, SourceEvent
from buttercup_dagster.sources.stop import Stop
from task_api.registry import TaskRegistry
from task_api.task import (
    ButtercupError,
    Reason,
    RegistryUnavailable,
    Task,
    TaskState,
    TransitionRefused,
    UnknownTask,
)

RENEW_SECONDS: Final = 1.0
"""Pause between two renewals; a cancel is noticed within it, and the lease is ten times as long."""

REDIS_PAUSE_SECONDS: Final = 0.5
FAREWELL_SECONDS: Final = 5.0
"""How long an interrupted attempt tries to tell the registry; afterwards its lease runs out."""

_QUERY: Final = re.compile(r"\?\S+")
_USER: Final = re.compile(r"//[^/@\s]*@")

_T = TypeVar("_T")


class Withdrawn(ButtercupError):
    """The task was cancelled, expired or taken over; the attempt ended and left nothing."""


class AttemptFailed(ButtercupError):
    """The attempt failed.

    Attributes:
        code: short snake_case word for programs.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Redis:
    """Calls of the registry that wait while Redis is away.

    Args:
        stop: ends the waiting.
        log: told when the waiting begins and ends.
    """

    def __init__(self, stop: Stop, log: Log) -> None:
        self._stop = stop
        self._log = log

    def call(self, function: Callable[[], _T]) -> _T:
        """Call until Redis answers.

        Raises:
            RegistryUnavailable: the work was stopped while Redis was away.
            RegistryError: as the function raises them.
        """
        told = False
        while True:
            try:
                result = function()
            except RegistryUnavailable as error:
                if not told:
                    self._log(f"{error}; waiting for it")
                    told = True
                if self._stop.wait(REDIS_PAUSE_SECONDS):
                    raise
            else:
                if told:
                    self._log("Redis answers again")
                return result


@dataclass(frozen=True)
class Run:
    """The run that makes the attempt.

    Attributes:
        run_id: its id.
        token: the claim's token; None to start by hand.
        terminated: whether somebody asked for its end, as opposed to a process that is stopped.
        log: takes a line for people; called in the thread that calls `Attempt.run` only.
    """

    run_id: str
    token: int | None
    terminated: Callable[[], bool]
    log: Log


class Attempt:
    """One attempt at a task.

    Args:
        registry: where the task stands.
        engine: what prepares it.
        task_id: the task.
        run: who makes the attempt.
    """

    def __init__(self, registry: TaskRegistry, engine: Engine, task_id: str, run: Run) -> None:
        self._registry = registry
        self._engine = engine
        self._task_id = task_id
        self._run = run
        self._log = run.log
        self._stop = Stop()
        self._redis = Redis(self._stop, run.log)
        self._token = 0
        self._task: Task | None = None
        self._refusal: ButtercupError | None = None
        self._prepared: Prepared | None = None
        self._reports: list[Future[None]] = []

    def run(self) -> Prepared:
        """Prepare the task; whatever happens, the registry learns it or the lease runs out.

        Returns:
            The prepared task; the registry has announced it.

        Raises:
            Withdrawn: the task may not be started, or was taken away.
            AttemptFailed: it cannot be prepared, now or at all.
        """
        try:
            return in_thread(self._work, stop=self._stop, log=self._run.log)
        except Exception:
            raise
        except BaseException:  # how Dagster and Python pass on a signal
            self._say_interrupted()
            raise

    def _work(self, log: Log) -> Prepared:
        self._log = log
        self._redis = Redis(self._stop, log)
        try:
            task = self._start()
        except (TransitionRefused, UnknownTask, RegistryUnavailable) as error:
            raise Withdrawn(str(error)) from None
        self._task = task
        self._stop.deadline_ms = task.deadline_ms
        done = threading.Event()
        heart = threading.Thread(target=self._keep_lease, args=(done,), name="lease", daemon=True)
        heart.start()
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="report") as self._reporter:
                self._prepared = self._prepare(task)
        finally:
            done.set()
            heart.join()
        return self._prepared

    def _start(self) -> Task:
        attempt = self._redis.call(
            lambda: self._registry.start(
                self._task_id,
                run_id=self._run.run_id,
                machine=self._engine.machine,
                token=self._run.token,
            )
        )
        self._token = attempt.token
        failures = f" after {attempt.failures} failed attempts" if attempt.failures else ""
        self._log(f"attempt {attempt.token} of task {self._task_id} begins{failures}")
        return attempt.task

    def _keep_lease(self, done: threading.Event) -> None:
        while not done.wait(RENEW_SECONDS):
            try:
                self._registry.renew(self._task_id, self._token)
            except RegistryUnavailable:
                continue
            except ButtercupError as error:
                if not done.is_set():
                    self._withdraw(error)
                return

    def _withdraw(self, error: ButtercupError) -> None:
        self._refusal = self._refusal or error
        self._stop.request(str(error))

    def _prepare(self, task: Task) -> Prepared:
        try:
            return self._engine.prepare(
                task,
                stop=self._stop,
                confirm=self._confirm,
                announce=self._announce,
                on_event=self._note,
            )
        except (TransitionRefused, UnknownTask) as error:
            raise Withdrawn(str(error)) from None
        except DeadlinePassed as error:
            # The reaper expires the task, by Redis's clock.
            with suppress(RegistryUnavailable):
                self._registry.reap()
            raise Withdrawn(str(error)) from None
        except Stopped as error:
            raise Withdrawn(str(self._refusal or error)) from None
        except RegistryUnavailable as error:  # only after a stop
            raise Withdrawn(str(self._refusal or error)) from None
        except SourceError as error:
            raise self._fail(error) from None
        except Exception as error:  # noqa: BLE001 - whatever it is, the task must not be lost
            self._log(without_queries("".join(traceback.format_exception(error))))
            text = without_queries(f"{type(error).__name__}: {error}")
            raise self._fail(
                SourceError(f"unexpected error: {text}", code="internal", retryable=True)
            ) from None

    def _confirm(self) -> None:
        wait(self._reports)
        self._redis.call(lambda: self._registry.confirm(self._task_id, self._token))

    def _announce(self, path: Path) -> None:
        try:
            self._redis.call(
                lambda: self._registry.ready(
                    self._task_id, self._token, path=str(path), machine=self._engine.machine
                )
            )
        except RegistryUnavailable as error:
            if self._refusal is not None and not self._announced():
                raise self._refusal from None
            # Nobody knows whether the announcement arrived. A ready task without its folder would
            # be worse than a folder that the next attempt finds in place, so it stays.
            self._log(f"{error}; the folder stays, the announcement is uncertain")

    def _announced(self) -> bool:
        """Whether the lease was refused because this attempt has made its task ready."""
        refusal = self._refusal
        return (
            isinstance(refusal, TransitionRefused)
            and refusal.state is TaskState.READY
            and refusal.token == self._token
        )

    def _note(self, event: SourceEvent) -> None:
        if event.phase != "fetching":
            self._log(described(event))
            self._reports.append(self._reporter.submit(self._report, event))

    def _report(self, event: SourceEvent) -> None:
        try:
            self._redis.call(
                lambda: self._registry.report_source(
                    self._task_id,
                    self._token,
                    event.source_type,
                    event.phase,
                    sha256=event.sha256,
                    bytes_=event.bytes,
                    files=event.files,
                    cache_hit=event.cache_hit,
                )
            )
        except RegistryUnavailable:  # only after a stop
            return
        except (TransitionRefused, UnknownTask) as error:
            self._withdraw(error)

    def _fail(self, error: SourceError) -> ButtercupError:
        text = described_error(error)
        try:
            state = self._redis.call(
                lambda: self._registry.fail(
                    self._task_id,
                    self._token,
                    Reason(error.code, text),
                    transient=error.retryable,
                    retry_after_ms=int((error.retry_after_seconds or 0) * 1000),
                    retry_until_ms=self._expiry_ms(error),
                )
            )
        except (TransitionRefused, UnknownTask) as refusal:
            return Withdrawn(str(refusal))
        except RegistryUnavailable as away:
            return AttemptFailed(error.code, f"{text}; {away}, so the registry does not know yet")
        if error.retryable:
            again = "will" if state is TaskState.PENDING else "will not"
            text += f"; the task {again} be tried again"
        return AttemptFailed(error.code, text)

    def _expiry_ms(self, error: SourceError) -> int | None:
        """When the URLs of the source that failed stop working, UNIX milliseconds, if they say."""
        sources = self._task.sources if self._task else ()
        moments = [source_expiry_ms(one) for one in sources if one.type == error.source_type]
        return moments[0] if moments else None

    # --- after an interrupt, in the calling thread -------------------------------------------

    def _say_interrupted(self) -> None:
        """Record who stopped the attempt, unless it had ended already."""
        if not self._token or self._prepared is not None:
            return
        stopped = self._run.terminated()
        if stopped:
            reason = Reason(
                "stopped",
                f"run stopped in Dagster; retry with `buttercup-registry retry {self._task_id}`",
            )
        else:
            reason = Reason("interrupted", "the process of its run was stopped")
        self._run.log(reason.text)
        end = time.monotonic() + FAREWELL_SECONDS
        while time.monotonic() < end:
            try:
                if stopped:
                    self._registry.fail(self._task_id, self._token, reason)
                else:
                    self._registry.give_back(self._task_id, self._token, reason)
            except RegistryUnavailable:
                time.sleep(REDIS_PAUSE_SECONDS)
            except ButtercupError as error:
                self._run.log(str(error))
                return
            else:
                return


def described(event: SourceEvent) -> str:
    """A line about a step of a source, for people."""
    if event.files is not None:
        what = f"{event.files} files"
    else:
        what = f"{event.bytes} bytes from {'the store' if event.cache_hit else event.host or '?'}"
    return f"{event.source_type}: {event.phase} in {event.seconds:.2f} s, {what}"


def described_error(error: SourceError) -> str:
    """What went wrong, beginning with the source it went wrong with."""
    return f"{error.source_type}: {error}" if error.source_type else str(error)


def without_queries(text: str) -> str:
    """Text of unknown origin without queries and users of the URLs in it; they are credentials."""
    return _USER.sub("//", _QUERY.sub("?…", text))
