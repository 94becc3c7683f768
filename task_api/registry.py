"""The task registry: every read and every write of a task in Redis.

Redis is the truth about a task. Each move is one Lua script in `task_api/lua`, which checks the
state and the fencing token, writes the task, moves it between the per-state indexes, counts,
appends an event, and rings the doorbell or writes a stream where that applies. So a move happens
whole or not at all, and whoever is refused learns the state that was found.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import redis

from task_api import keys, operations
from task_api.operations import BATCH, Argument, Command, Operation, Script, as_bytes, request_id
from task_api.records import (
    Attempt,
    Claim,
    Event,
    Reaped,
    Receipt,
    SourceReport,
    Status,
    Submission,
    TaskRecord,
    Unmaterialized,
    Verdict,
    decoded,
    event_of,
    record_of,
    shortened,
)
from task_api.redis_client import LONGEST_BLOCK_SECONDS, OnRedis, translated
from task_api.task import (
    Outcome,
    Reason,
    RegistryUnavailable,
    SourceType,
    TaskState,
    TransitionRefused,
)

__all__ = [
    "Attempt",
    "Claim",
    "Event",
    "Reaped",
    "Receipt",
    "SourceReport",
    "Status",
    "Submission",
    "TaskRecord",
    "TaskRegistry",
    "Unmaterialized",
    "Verdict",
]

_Result = TypeVar("_Result")


class TaskRegistry(OnRedis):
    """Reads and writes the tasks of one Redis.

    Every method may raise `RegistryUnavailable`. Methods that move a task raise `UnknownTask` or
    `TransitionRefused` where the move is not allowed. An instance may be shared by threads.

    A connection that breaks leaves open whether a command was carried out, so the client sends it
    again. No method does anything twice for that, and each answers as it would have at first.
    """

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        # Ids of claims whose answers did not come; they may have taken tasks.
        self._unanswered: list[str] = []

    # --- the registry as a whole -------------------------------------------------------------

    def initialize(self) -> None:
        """Mark a new registry with its schema version, or check the mark of an existing one.

        Raises:
            SchemaMismatch: a newer version of this project wrote the registry.
        """
        self.run(operations.initialize())

    def ping(self) -> None:
        """Return if Redis answers and takes commands."""
        with translated():
            self._redis.ping()

    def persistence_warning(self) -> str | None:
        """What an operator should know when this Redis may forget an answered task, or None."""
        return self.run(operations.persistence_warning())

    # --- intake ------------------------------------------------------------------------------

    def accept(
        self,
        message_id: str,
        fingerprint: str,
        submissions: Sequence[Submission],
        *,
        answer: str = "",
    ) -> Receipt:
        """Record the tasks of one message, all in one step.

        A valid new task becomes pending, or canceled if its cancel came first. A task with
        problems is recorded as errored if another one of the message was accepted; else nothing
        of it is kept. The answer of a message that was accepted is remembered, so that the same
        message gets it again whatever became of its tasks. Of the problems of a task the first 20
        are kept, and about 2000 characters.

        Args:
            message_id: UUID of the message, lower-case.
            fingerprint: digest of the message's body; tells a repeated message from another one
                that carries the same id.
            submissions: its tasks in order; may be empty.
            answer: the text with which success will be answered.
        """
        return self.run(operations.accept(message_id, fingerprint, submissions, answer=answer))

    def add_sarif(self, task_id: str, sarif_id: str, broadcast: Mapping[str, Any]) -> bool:
        """Keep a SARIF broadcast, once for each sarif_id of a task.

        Returns:
            Whether it is new.
        """
        return self.run(operations.add_sarif(task_id, sarif_id, broadcast))

    def sarifs(self, task_id: str) -> dict[str, Any]:
        """The SARIF broadcasts of a task by their sarif_id."""
        with translated():
            found = cast(dict[bytes, bytes], self._redis.hgetall(keys.SARIF + task_id))
        return {name.decode(): json.loads(value) for name, value in found.items()}

    # --- moves -------------------------------------------------------------------------------

    def claim(self, limit: int, *, lease_ms: int = keys.SCHEDULED_LEASE_MS) -> list[Claim]:
        """Take up to `limit` due pending tasks, the longest waiting first: pending → scheduled.

        What a call took whose answer did not come, since Redis was away, comes with the next call
        on the same instance, whatever its limit; else it is pending again when its lease ends.

        Args:
            limit: how many at the most.
            lease_ms: how long a start may take, milliseconds; then the task is pending again.
        """
        try:
            request = self._unanswered.pop()
        except IndexError:
            if limit <= 0:
                return []
            request = request_id()
        try:
            taken = self._run("claim", request, max(0, min(limit, BATCH)), lease_ms)
        except RegistryUnavailable:
            self._unanswered.append(request)
            raise
        return [Claim(taken[i], int(taken[i + 1])) for i in range(0, len(taken), 2)]

    def start(
        self,
        task_id: str,
        *,
        run_id: str,
        machine: str,
        token: int | None = None,
        lease_ms: int = keys.RUNNING_LEASE_MS,
    ) -> Attempt:
        """Begin an attempt: scheduled or pending → downloading.

        A task that was announced, given back by its consumer as errored and started by hand is
        announced anew, as after `retry`.

        Args:
            task_id: the task.
            run_id: the run that will do the work.
            machine: the host it runs on.
            token: the claim's token; None to start by hand, which also takes an errored task.
            lease_ms: lease of the attempt, milliseconds; `renew` it well before it ends.

        Raises:
            UnknownTask, TransitionRefused: it may not be started (now, or with this token; by hand
                also past its deadline), or its record cannot be read, which makes it errored.
        """
        reply = self._move(
            "started", "start", task_id, "" if token is None else token, run_id, machine, lease_ms
        )
        held = int(reply[0])
        record = self.get(task_id)
        if record.defect is not None:
            reason = Reason("unreadable", f"{record.defect}; post it anew, under another task_id")
            raise TransitionRefused(
                task_id,
                "started",
                state=self.fail(task_id, held, reason),
                token=held,
                run_id=run_id,
                reason=reason,
            )
        return Attempt(record.task, held, record.failures)

    def renew(self, task_id: str, token: int, *, lease_ms: int = keys.RUNNING_LEASE_MS) -> None:
        """Extend the lease of a running attempt.

        Raises:
            UnknownTask, TransitionRefused: the attempt is over; stop and clean up.
        """
        self._move("continued", "renew", task_id, token, lease_ms)

    def report_source(
        self,
        task_id: str,
        token: int,
        source_type: SourceType,
        state: str,
        *,
        sha256: str = "",
        bytes_: int = 0,
        files: int | None = None,
        cache_hit: bool = False,
    ) -> None:
        """Note that a source was verified or unpacked; appends an event of that kind.

        The same report of the same attempt appends one event, however often it is made.

        Raises:
            UnknownTask, TransitionRefused: the attempt is over; stop and clean up.
        """
        report: dict[str, Any] = {"state": state, "bytes": bytes_, "cache_hit": cache_hit}
        if files is not None:
            report["files"] = files
        self._move(
            "continued",
            "report_source",
            task_id,
            token,
            str(source_type),
            state,
            json.dumps(report),
            sha256,
            bytes_,
        )

    def ready(self, task_id: str, token: int, *, path: str, machine: str) -> None:
        """Announce a prepared task: downloading → ready, with the entry in the ready stream.

        May be repeated with the same token, even when a consumer has judged the task since: the
        announcement is made once.

        Args:
            task_id: the task.
            token: the attempt's token.
            path: its folder on that machine.
            machine: the host that has it.

        Raises:
            UnknownTask, TransitionRefused: the attempt is over; remove the folder.
        """
        self._move("made ready", "ready", task_id, token, as_bytes(path), machine)

    def confirm(self, task_id: str, token: int) -> None:
        """Return if the attempt with this token is still the one that may publish.

        Raises:
            UnknownTask, TransitionRefused: it is not; stop and clean up.
        """
        self._move("published", "confirm", task_id, token)

    def fail(
        self,
        task_id: str,
        token: int,
        reason: Reason,
        *,
        transient: bool = False,
        retry_after_ms: int = 0,
        retry_until_ms: int | None = None,
    ) -> TaskState:
        """End an attempt without success: downloading or scheduled → pending or errored.

        A transient failure goes back to pending, to be claimed again after a pause: 5 seconds
        doubling to 5 minutes, with jitter, at least `retry_after_ms`. It is errored instead when
        the pause would outlast the deadline or `retry_until_ms`, or at the fifth failure. Of the
        reason about 2000 characters are kept.

        May be repeated with the same token: the failure counts once, and the answer is the same.

        Returns:
            The new state.

        Raises:
            UnknownTask, TransitionRefused: the attempt was over already, by another's doing.
        """
        reply = self._move(
            "failed",
            "fail",
            task_id,
            token,
            reason.code,
            as_bytes(shortened(reason.text)),
            int(transient),
            retry_after_ms,
            retry_until_ms or 0,
            _jitter(),
        )
        return TaskState(reply[0])

    def give_back(self, task_id: str, token: int, reason: Reason) -> None:
        """End an attempt whose worker was told to end: downloading or scheduled → pending, at once.

        Nothing failed, so nothing is counted. May be repeated with the same token.

        Raises:
            UnknownTask, TransitionRefused: the attempt was over already.
        """
        self._move(
            "given back", "give_back", task_id, token, reason.code, as_bytes(shortened(reason.text))
        )

    def cancel(self, task_id: str, *, reason: Reason | None = None) -> bool:
        """Cancel a task; one that is not known yet is cancelled when it comes (for 7 days).

        Its folder is listed for removal if it was announced, or if an attempt had begun, which may
        have left one.

        Returns:
            Whether the task is known.

        Raises:
            TransitionRefused: the task has ended; there is nothing to cancel. Never raised for a
                task that is canceled already.
        """
        return self.run(operations.cancel(task_id, reason=reason))

    def cancel_all(self, *, reason: Reason | None = None) -> int:
        """Cancel every live task that was recorded before this call, however it moves meanwhile.

        Returns:
            How many were cancelled.
        """
        return self.run(operations.cancel_all(reason=reason))

    def retry(self, task_id: str) -> None:
        """Prepare a task again: errored or failed → pending, with its failures forgotten.

        A task that had been announced, and was given back by its consumer as errored or failed, is
        announced anew when it is ready again: one more entry in the ready stream for each retry.

        Raises:
            UnknownTask, TransitionRefused: it is in another state, its deadline has passed, or it
                was refused when it was posted.
        """
        self.run(operations.retry(task_id))

    def report_outcome(self, task_id: str, outcome: Outcome, reason: str = "") -> None:
        """Record what a consumer made of a ready task. The same report may be repeated.

        Raises:
            UnknownTask, TransitionRefused: the task is not ready, or has another outcome.
        """
        self.run(operations.report_outcome(task_id, outcome, reason))

    def reap(self) -> Reaped:
        """Expire tasks past their deadline and take back leases that ran out.

        A downloading task whose lease ran out counts a failure; a scheduled one does not. After
        Redis was away or frozen, leases that ran out meanwhile, or are about to, are made whole
        once instead: their holders could not renew them.
        """
        expired: list[str] = []
        returned: list[str] = []
        errored: list[str] = []
        more = True
        while more:
            more_flag, *moves = self._run("reap", request_id(), BATCH, _jitter())
            more = more_flag == "1"
            for i in range(0, len(moves), 2):
                {"expired": expired, "pending": returned, "errored": errored}[moves[i]].append(
                    moves[i + 1]
                )
        return Reaped(tuple(expired), tuple(returned), tuple(errored))

    # --- waiting and heartbeats --------------------------------------------------------------

    def wait_for_work(self, timeout_seconds: float) -> bool:
        """Block until a task may be claimed, a lease or deadline ends, or time is up.

        Returns:
            Whether there is a reason to look at the registry again.
        """
        end = time.monotonic() + timeout_seconds
        while (left := end - time.monotonic()) > 0:
            timer_ms = int(self._run("timers"))
            if timer_ms == 0:
                return True
            if timer_ms > 0:
                left = min(left, timer_ms / 1000)
            # Redis takes a time-out of 0 for "wait for ever".
            block = max(0.01, min(left, LONGEST_BLOCK_SECONDS))
            with translated():
                if self._redis.blpop([keys.DOORBELL], timeout=block) is not None:
                    return True
        return False

    def sensor_seen(self, *, needs_workers: bool, free_slots: int) -> None:
        """The intake sensor's heartbeat."""
        self._run("sensor_seen", int(needs_workers), free_slots)

    # --- materializations and folders --------------------------------------------------------

    def unmaterialized(self, *, older_than_ms: int, limit: int = BATCH) -> list[Unmaterialized]:
        """Ready tasks whose materialization was not confirmed within `older_than_ms`."""
        with translated():
            latest = self._now_ms() - older_than_ms
            found = cast(
                list[tuple[bytes, float]],
                self._redis.zrange(
                    keys.UNMATERIALIZED,
                    0,
                    latest,
                    byscore=True,
                    offset=0,
                    num=limit,
                    withscores=True,
                ),
            )
        return [Unmaterialized(task_id.decode(), int(score)) for task_id, score in found]

    def materialized(self, task_id: str) -> None:
        """Confirm that Dagster has the materialization of a ready task."""
        with translated():
            self._redis.zrem(keys.UNMATERIALIZED, task_id)

    def removals(self) -> list[str]:
        """Tasks whose folder, if there is one, is no longer wanted.

        They are canceled; or expired or errored without ever having been announced, after an
        attempt had begun on `TaskRecord.machine`. An errored task may be prepared again at any
        moment: ask for its state once more under the lock under which folders are published.
        """
        with translated():
            return sorted(
                member.decode() for member in cast(set[bytes], self._redis.smembers(keys.REMOVALS))
            )

    def removed(self, task_id: str) -> None:
        """Confirm that the folder of a task is gone."""
        with translated():
            self._redis.srem(keys.REMOVALS, task_id)

    # --- reading -----------------------------------------------------------------------------

    def get(self, task_id: str) -> TaskRecord:
        """A task and where it stands.

        Raises:
            UnknownTask: no such task.
        """
        return self.run(operations.get(task_id))

    def get_many(self, task_ids: Sequence[str]) -> list[TaskRecord | None]:
        """The tasks with these ids, None for an unknown one, in one round trip."""
        if not task_ids:
            return []
        with translated():
            pipeline = self._redis.pipeline(transaction=False)
            for task_id in task_ids:
                pipeline.hgetall(keys.TASK + task_id)
            hashes = cast(list[dict[bytes, bytes]], pipeline.execute())
        return [
            record_of(task_id, {decoded(k): decoded(v) for k, v in fields.items()})
            if fields
            else None
            for task_id, fields in zip(task_ids, hashes, strict=True)
        ]

    def page(
        self, *, state: TaskState | None = None, limit: int = 50, after: str | None = None
    ) -> list[TaskRecord]:
        """Tasks in the order in which they were recorded, newest first.

        Each task is there once, whatever moves meanwhile; of those in one state, all were in it at
        the same moment (for every 200 of them). A record that cannot be read whole is there too,
        with its `defect`; one of which the registry's own part is lost is left out.

        Args:
            state: only tasks in this state; None for all, state by state being merged.
            limit: how many at the most.
            after: id of the last task of the page before; need not be in `state` any more.

        Raises:
            UnknownTask: `after` is not known.
        """
        return self.run(operations.page(state=state, limit=limit, after=after))

    def events(self, task_id: str, *, limit: int = 1000) -> list[Event]:
        """The timeline of a task, oldest first; of a longer one the latest `limit` events."""
        return self.run(operations.events(task_id, limit=limit))

    def follow(self, after: str = "$", *, block_seconds: float = 1.0) -> list[Event]:
        """Events of all tasks after a stream id, waiting for the first if there is none.

        Args:
            after: stream id of the last event seen; `$` for only what is still to come.
            block_seconds: how long to wait, at most 3 seconds.
        """
        block_ms = max(1, int(min(block_seconds, LONGEST_BLOCK_SECONDS) * 1000))
        with translated():
            reply = cast(
                Any, self._redis.xread({keys.RECENT_EVENTS: after}, count=500, block=block_ms)
            )
        return [event_of(entry) for _, entries in reply for entry in entries]

    def last_event_id(self) -> str:
        """Stream id of the latest event of any task; `0-0` if there is none."""
        with translated():
            found = cast(Any, self._redis.xrevrange(keys.RECENT_EVENTS, count=1))
        return str(found[0][0].decode()) if found else "0-0"

    def status(self) -> Status:
        """Sizes of the indexes, counters and heartbeats, in one round trip."""
        return self.run(operations.status())

    def reset_counters(self) -> None:
        """Set the counters to 0; `since` becomes now."""
        self.run(operations.reset_counters())

    # --- retention ---------------------------------------------------------------------------

    def ended(self, *, older_than_ms: int, limit: int = BATCH) -> list[str]:
        """Tasks that ended at least `older_than_ms` ago, the longest ago first.

        Those of a registry that an older version of this project wrote are listed first.
        """
        states = [state for state in TaskState if not state.live]
        if int(self._run("unlisted", *states)) > 0:
            for state in states:
                last = "-1"
                while last:
                    last = self._run("note_ended", state, last, BATCH)
        with translated():
            found = cast(
                list[bytes],
                self._redis.zrange(
                    keys.ENDED,
                    "-inf",
                    self._ago_ms(older_than_ms),
                    byscore=True,
                    offset=0,
                    num=limit,
                ),
            )
        return [member.decode() for member in found]

    def retire(self, *, older_than_ms: int, limit: int = BATCH) -> list[str]:
        """Forget tasks that ended at least `older_than_ms` ago, with all that belongs to them.

        A live task is never retired, nor one that was retried meanwhile. From this call on the id
        is unknown; the same task may be posted anew, and is another one then. A message that is
        repeated within its memory still gets its answer. The folders of the task are listed
        (`retired_folders`) until each machine has removed its own.

        Args:
            older_than_ms: age since they ended, milliseconds.
            limit: how many at the most, up to 200.

        Returns:
            Their ids.
        """
        return cast(list[str], self._run("retire", request_id(), min(limit, BATCH), older_than_ms))

    def retired_folders(self, machine: str, *, skip: int = 0, limit: int = BATCH) -> list[str]:
        """Retired tasks that may have left a folder on a machine, the longest retired first.

        They are remembered for 30 days after the last one was retired. One of them may have been
        posted anew: ask for it under the lock under which folders are published.
        """
        with translated():
            found = cast(
                list[bytes],
                self._redis.zrange(keys.RETIRED_FOLDERS + machine, skip, skip + limit - 1),
            )
        return [member.decode() for member in found]

    def retired_folder_removed(self, machine: str, task_id: str) -> None:
        """Confirm that a machine has nothing of a retired task any more."""
        with translated():
            self._redis.zrem(keys.RETIRED_FOLDERS + machine, task_id)

    def known(self, task_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are recorded, in one round trip for every 200."""
        found: set[str] = set()
        for start in range(0, len(task_ids), BATCH):
            part = task_ids[start : start + BATCH]
            with translated():
                pipeline = self._redis.pipeline(transaction=False)
                for task_id in part:
                    pipeline.exists(keys.TASK + task_id)
                answers = pipeline.execute()
            found.update(task_id for task_id, answer in zip(part, answers, strict=True) if answer)
        return found

    def trim_streams(self, *, older_than_ms: int) -> None:
        """Remove what is of use to nobody from the streams.

        That is, of the streams `ready` and `canceled`, the entries of that age whose tasks are
        retired; a consumer that lags still finds those of all others. Of the latest events of all
        tasks, those of that age.
        """
        for stream in (keys.READY, keys.CANCELED):
            last = "0"
            while last:
                last = self._run("trim_stream", stream, last, BATCH, older_than_ms)
        with translated():
            self._redis.xtrim(
                keys.RECENT_EVENTS, minid=self._ago_ms(older_than_ms), approximate=False
            )

    def _ago_ms(self, milliseconds: int) -> int:
        """The moment so long ago, by Redis's clock; not before the year 1970."""
        return max(0, self._now_ms() - milliseconds)

    # --- operations --------------------------------------------------------------------------

    def run(self, operation: Operation[_Result]) -> _Result:
        """Carry out an operation of `task_api.operations`; the methods above do it with theirs."""
        try:
            request = next(operation)
            while True:
                try:
                    reply = self._send(request)
                except Exception as error:  # noqa: BLE001 - the operation's to judge
                    request = operation.throw(error)
                else:
                    request = operation.send(reply)
        except StopIteration as done:
            result: _Result = done.value
            return result

    def _send(self, request: Script | Command) -> Any:
        with translated():
            if isinstance(request, Script):
                return decoded(self._scripts[request.name](args=request.arguments))
            # The client has no types for it.
            return self._redis.execute_command(*request.arguments)  # type: ignore[no-untyped-call]

    def _run(self, script: str, *arguments: Argument) -> Any:
        return self.run(operations.script(script, *arguments))

    def _move(self, move: str, script: str, task_id: str, *arguments: Argument) -> list[str]:
        return self.run(operations.move(move, script, task_id, *arguments))


def _jitter() -> str:
    """A factor for a pause; half of it is random, so that failures do not come back together."""
    return f"{random.uniform(0.5, 1.0):.4f}"  # noqa: S311 - not a secret
