"""Any sequence of calls keeps the registry true (hypothesis' state machine on a real Redis).

After each step: each task is in exactly one index and in the state that a plain model expects; the
timers belong to the states; the counters are true; tokens only grow; the streams hold exactly the
announcements that the model expects: at most one for each time a task was accepted or retried, and
none after its cancel. In half of the runs every script is sent twice, as the client does when a
connection breaks: both answers are the same, and the model knows of one call.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from task_api import keys
from task_api.operations import Command, Script
from task_api.registry import Submission, TaskRegistry
from task_api.task import (
    LIVE_STATES,
    Outcome,
    Problem,
    Reason,
    Task,
    TaskState,
    TransitionRefused,
    UnknownTask,
)
from tests.support.tasks import make_task, now_ms

PENDING, SCHEDULED, DOWNLOADING, READY, SUCCEEDED, FAILED, ERRORED, CANCELED, EXPIRED = TaskState
NUMBERS = st.integers(0, 1_000_000)


@dataclass
class Expected:
    """What the model knows of one task."""

    task: Task
    state: TaskState
    token: int = 0
    failures: int = 0
    due: bool = True
    chances: int = 1
    canceled: bool = False
    refused: bool = False
    outcome: Outcome | None = None
    run_id: str | None = None
    announced: int = 0
    ready_token: int | None = None
    failed: tuple[int, TaskState] | None = None
    path: bool = False
    begun: bool = False
    tokens: list[int] = field(default_factory=lambda: [0])


class SentTwice(TaskRegistry):
    """A registry whose scripts all arrive twice, the second time to be answered."""

    CHANGING: ClassVar = {"accept", "status", "timers"}
    """Scripts whose answers tell of the present, or (accept) that they came before."""

    def _send(self, request: Script | Command) -> Any:
        first = super()._send(request)
        if isinstance(request, Command):
            return first
        second = super()._send(request)
        assert request.name in self.CHANGING or second == first
        return second


class RegistryMachine(RuleBasedStateMachine):
    """Random calls, each checked against the model."""

    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.client: Any = redis.Redis.from_url(self.url, protocol=2, decode_responses=True)
        self.client.flushall()
        self.registry = TaskRegistry.from_url(self.url)
        self.known: dict[str, Expected] = {}
        self.canceled_ahead: set[str] = set()
        self.counted: Counter[str] = Counter()
        self.waiting: set[str] = set()

    def teardown(self) -> None:
        self.registry.close()
        self.client.close()

    @initialize(twice=st.booleans())
    def begin(self, twice: bool) -> None:
        if twice:
            self.registry.close()
            self.registry = SentTwice.from_url(self.url)
        self.registry.initialize()
        self.registry.reap()

    # --- what the rules share ----------------------------------------------------------------

    def some(self, number: int, *preferred: TaskState) -> Expected:
        """One of the known tasks; three times in four one in a preferred state, if there is one."""
        tasks = list(self.known.values())
        if number % 4 and preferred:
            tasks = [task for task in tasks if task.state in preferred] or tasks
        return tasks[number // 4 % len(tasks)]

    def moved(self, expected: Expected, state: TaskState) -> None:
        expected.state = state
        if state is not READY:
            self.waiting.discard(expected.task.task_id)
        if state in {SUCCEEDED, FAILED, ERRORED, CANCELED}:
            self.counted[state] += 1

    def grown(self, expected: Expected, token: int) -> None:
        assert token > expected.token, "tokens only grow"
        expected.token = token
        expected.tokens.append(token)

    @contextmanager
    def allowed(self, condition: bool) -> Iterator[None]:
        """The call inside must be refused, and change nothing, unless the model allows it."""
        if condition:
            yield
        else:
            with pytest.raises(TransitionRefused):
                yield

    # --- intake ------------------------------------------------------------------------------

    @rule(count=st.integers(1, 2), bad=st.booleans(), ahead=st.booleans(), number=NUMBERS)
    def post_new(self, count: int, bad: bool, ahead: bool, number: int) -> None:
        tasks = [make_task() for _ in range(count)]
        if ahead and self.canceled_ahead:
            chosen = sorted(self.canceled_ahead)[number % len(self.canceled_ahead)]
            tasks[0] = replace(tasks[0], task_id=chosen)
        submissions = [Submission(task) for task in tasks]
        if bad:
            submissions.append(Submission(make_task(), [Problem(("focus",), "bad")]))
        message = str(uuid.uuid4())
        for _ in range(2):  # at least once is how it is delivered
            self.registry.accept(message, message, submissions)
        for task in tasks:
            expected = self.known[task.task_id] = Expected(task, PENDING)
            if task.task_id in self.canceled_ahead:
                self.canceled_ahead.discard(task.task_id)
                expected.canceled = True
                self.moved(expected, CANCELED)
        if bad:
            refused = submissions[-1].task
            self.known[refused.task_id] = Expected(refused, PENDING, refused=True, chances=0)
            self.moved(self.known[refused.task_id], ERRORED)

    @precondition(lambda self: self.known)
    @rule(number=NUMBERS, other=st.booleans())
    def post_again(self, number: int, other: bool) -> None:
        expected = self.some(number)
        if expected.refused:
            return
        task = replace(expected.task, focus="elsewhere") if other else expected.task
        message = str(uuid.uuid4())
        receipt = self.registry.accept(message, message, [Submission(task)])
        # A conflict is not remembered, since its message was not accepted.
        kinds = ["conflict" if other else "duplicate"]
        assert receipt.repeated or [v.kind for v in receipt.verdicts] == kinds
        assert receipt.accepted is not other

    # --- workers -----------------------------------------------------------------------------

    @rule(limit=st.integers(0, 3), lost=st.booleans())
    def claim(self, limit: int, lost: bool) -> None:
        claims = self.registry.claim(limit, lease_ms=-1 if lost else 60_000)
        due = [e for e in self.known.values() if e.state is PENDING and e.due]
        assert len(claims) == min(limit, len(due))
        for claim in claims:
            expected = self.known[claim.task_id]
            assert expected in due
            expected.run_id = None
            self.grown(expected, claim.token)
            self.moved(expected, SCHEDULED)

    @precondition(lambda self: self.known)
    @rule(number=NUMBERS, age=st.sampled_from([0, 0, 0, 1, 2]), by_hand=st.booleans())
    def start(self, number: int, age: int, by_hand: bool) -> None:
        expected = self.some(number, PENDING, SCHEDULED, ERRORED)
        self.start_as(
            expected, token=None if by_hand else expected.tokens[-1 - age % len(expected.tokens)]
        )

    def start_as(self, expected: Expected, *, token: int | None) -> None:
        startable = (
            expected.state is PENDING or (expected.state is ERRORED and not expected.refused)
            if token is None
            else expected.state in {PENDING, SCHEDULED} and token == expected.token
        )
        run_id = str(uuid.uuid4())
        with self.allowed(startable):
            attempt = self.registry.start(
                expected.task.task_id,
                run_id=run_id,
                machine="host",
                token=token,
                lease_ms=60_000,
            )
            if expected.state is ERRORED:
                expected.failures = 0
                expected.chances += 1
                expected.outcome = None
            if expected.state is SCHEDULED:
                assert attempt.token == expected.token
            else:
                self.grown(expected, attempt.token)
            expected.run_id = run_id
            expected.begun = True
            self.moved(expected, DOWNLOADING)

    @rule(lost=st.booleans())
    def post_claim_and_start(self, lost: bool) -> None:
        """A short way to the states that random calls seldom reach."""
        self.post_new(count=1, bad=False, ahead=False, number=0)
        expected = list(self.known.values())[-1]
        self.claim(limit=len(self.known), lost=lost)
        self.start_as(expected, token=expected.token)

    @precondition(lambda self: any(e.state is DOWNLOADING for e in self.known.values()))
    @rule(number=NUMBERS)
    def make_ready(self, number: int) -> None:
        self.act(self.some(number | 1, DOWNLOADING), 0, "ready")

    @precondition(lambda self: self.known)
    @rule(
        number=NUMBERS,
        age=st.sampled_from([0, 0, 0, 1, 2]),
        act=st.sampled_from(
            ["renew", "lose", "confirm", "ready", "fail", "fail_transient", "back"]
        ),
    )
    def act_with_a_token(self, number: int, age: int, act: str) -> None:
        self.act(self.some(number, DOWNLOADING, READY), age, act)

    def act(self, expected: Expected, age: int, act: str) -> None:
        task_id = expected.task.task_id
        token = expected.tokens[-1 - age % len(expected.tokens)]
        current = token == expected.token
        held = current and expected.state is DOWNLOADING
        if act in {"renew", "lose"}:
            with self.allowed(held):
                self.registry.renew(task_id, token, lease_ms=60_000 if act == "renew" else -1)
        elif act == "confirm":
            with self.allowed(held):
                self.registry.confirm(task_id, token)
        elif act == "ready":
            repeated = current and expected.ready_token == token
            with self.allowed(held or repeated):
                self.registry.ready(task_id, token, path=f"/{token}", machine="host")
                if not repeated:
                    expected.announced += 1
                    expected.ready_token = token
                    expected.path = True
                    self.moved(expected, READY)
        elif act == "back":
            repeated = expected.failed is not None and expected.failed[0] == token
            with self.allowed(repeated or (current and expected.state in {SCHEDULED, DOWNLOADING})):
                self.registry.give_back(task_id, token, Reason("interrupted", "told to end"))
                if not repeated:
                    expected.due = True
                    self.moved(expected, PENDING)
                    expected.failed = (token, PENDING)
        else:
            transient = act == "fail_transient"
            repeated = expected.failed is not None and expected.failed[0] == token
            allowed = repeated or (current and expected.state in {SCHEDULED, DOWNLOADING})
            with self.allowed(allowed):
                state = self.registry.fail(
                    task_id, token, Reason("offline", "no answer"), transient=transient
                )
                if not repeated:
                    if transient:
                        self.failed_once(expected)
                    else:
                        self.moved(expected, ERRORED)
                    expected.failed = (token, expected.state)
                assert expected.failed == (token, state)

    def failed_once(self, expected: Expected) -> None:
        expected.failures += 1
        last = expected.failures >= keys.MAX_FAILURES
        expected.due = False
        self.moved(expected, ERRORED if last else PENDING)

    @precondition(lambda self: self.known)
    @rule(number=NUMBERS)
    def pause_ends(self, number: int) -> None:
        expected = self.some(number)
        if expected.state is PENDING:
            self.client.zadd(keys.DUE, {expected.task.task_id: 0})
            expected.due = True

    # --- the clock, people, consumers --------------------------------------------------------

    @rule()
    def reap(self) -> None:
        self.client.set(keys.REAPER, now_ms())
        ended = set(self.client.zrange(keys.LEASES, 0, now_ms(), byscore=True))
        late = set(self.client.zrange(keys.DEADLINES, 0, now_ms(), byscore=True))
        reaped = self.registry.reap()
        assert set(reaped.expired) == late
        assert set(reaped.returned) | set(reaped.errored) == ended - late
        for task_id in late:
            expected = self.known[task_id]
            self.counted[FAILED if expected.state is READY else ERRORED] += 1
            self.grown(expected, expected.token + 1)
            self.moved(expected, EXPIRED)
        for task_id in ended - late:
            expected = self.known[task_id]
            if expected.state is SCHEDULED:
                self.moved(expected, PENDING)
                expected.due = True
            else:
                self.failed_once(expected)

    @precondition(lambda self: self.known)
    @rule(number=NUMBERS)
    def deadline_comes(self, number: int) -> None:
        expected = self.some(number)
        if expected.state in LIVE_STATES:
            self.client.zadd(keys.DEADLINES, {expected.task.task_id: now_ms() - 1})

    @rule(number=NUMBERS, unknown=st.booleans())
    def cancel(self, number: int, unknown: bool) -> None:
        if unknown or not self.known:
            task_id = str(uuid.uuid4())
            assert self.registry.cancel(task_id) is False
            self.canceled_ahead.add(task_id)
            return
        expected = self.some(number)
        if expected.refused:
            return
        with self.allowed(expected.state in {*LIVE_STATES, CANCELED}):
            assert self.registry.cancel(expected.task.task_id) is True
            if expected.state is not CANCELED:
                self.canceled(expected)

    @rule(number=NUMBERS)
    def cancel_all(self, number: int) -> None:
        if number % 8:  # it ends what the other rules work on
            return
        live = [e for e in self.known.values() if e.state in LIVE_STATES]
        assert self.registry.cancel_all() == len(live)
        for expected in live:
            self.canceled(expected)

    def canceled(self, expected: Expected) -> None:
        expected.canceled = True
        self.grown(expected, expected.token + 1)
        self.moved(expected, CANCELED)

    @precondition(lambda self: self.known)
    @rule(number=NUMBERS)
    def retry(self, number: int) -> None:
        expected = self.some(number)
        with self.allowed(expected.state in {ERRORED, FAILED} and not expected.refused):
            self.registry.retry(expected.task.task_id)
            expected.failures = 0
            expected.chances += 1
            expected.due = True
            expected.outcome = None
            self.moved(expected, PENDING)

    @precondition(lambda self: self.known)
    @rule(number=NUMBERS, outcome=st.sampled_from(Outcome))
    def report_outcome(self, number: int, outcome: Outcome) -> None:
        expected = self.some(number, READY)
        repeated = expected.outcome is outcome and str(expected.state) == str(outcome)
        with self.allowed(expected.state is READY or repeated):
            self.registry.report_outcome(expected.task.task_id, outcome)
            if outcome is Outcome.WAITING:
                self.waiting.add(expected.task.task_id)
            elif not repeated:
                expected.outcome = outcome
                self.moved(expected, TaskState(outcome))

    @rule()
    def reset_counters(self) -> None:
        self.registry.reset_counters()
        self.counted.clear()

    @rule()
    def unknown_task(self) -> None:
        calls: list[Callable[[str], object]] = [
            self.registry.get,
            self.registry.retry,
            lambda task_id: self.registry.renew(task_id, 1),
            lambda task_id: self.registry.start(task_id, run_id="x", machine="host"),
            lambda task_id: self.registry.fail(task_id, 1, Reason("x", "x")),
            lambda task_id: self.registry.report_outcome(task_id, Outcome.FAILED),
        ]
        for call in calls:
            with pytest.raises(UnknownTask):
                call(str(uuid.uuid4()))

    # --- what must always hold ---------------------------------------------------------------

    @invariant()
    def each_task_is_in_exactly_one_index(self) -> None:
        found = Counter(
            dict.fromkeys(self.known, 0)
            | {
                task_id: list(TaskState).index(state) + 1
                for state in TaskState
                for task_id in self.client.zrange(keys.index(state), 0, -1)
            }
        )
        sizes = [self.client.zcard(keys.index(state)) for state in TaskState]
        assert sum(sizes) == len(self.known)
        page = self.registry.page(limit=1000)
        sequences = [record.sequence for record in page]
        assert sequences == sorted(sequences, reverse=True)
        records = {record.task.task_id: record for record in page}
        assert len(records) == len(page) == len(self.known)
        for task_id, expected in self.known.items():
            record = records[task_id]
            assert found[task_id] == list(TaskState).index(expected.state) + 1
            assert record.state is expected.state
            assert record.token == expected.token
            assert record.failures == expected.failures
            assert record.waiting == (task_id in self.waiting)

    @invariant()
    def timers_belong_to_states(self) -> None:
        def members(key: str) -> set[str]:
            return set(self.client.zrange(key, 0, -1))

        def in_states(*states: TaskState) -> set[str]:
            return {task_id for task_id, e in self.known.items() if e.state in states}

        assert members(keys.DUE) == in_states(PENDING)
        assert members(keys.LEASES) == in_states(SCHEDULED, DOWNLOADING)
        assert members(keys.DEADLINES) == in_states(*LIVE_STATES)

    @invariant()
    def removals_are_of_folders_that_nobody_wants(self) -> None:
        def unwanted(e: Expected) -> bool:
            left_behind = e.begun and not e.path and e.state in {CANCELED, EXPIRED, ERRORED}
            return left_behind or (e.path and e.state is CANCELED)

        assert self.registry.removals() == sorted(
            task_id for task_id, e in self.known.items() if unwanted(e)
        )

    @invariant()
    def materializations_are_asked_for_of_announced_tasks(self) -> None:
        asked = {entry.task_id for entry in self.registry.unmaterialized(older_than_ms=-60_000)}
        announced = {
            task_id
            for task_id, e in self.known.items()
            if e.announced and e.state in {READY, SUCCEEDED, FAILED}
        }
        assert asked == announced

    @invariant()
    def counters_are_true(self) -> None:
        status = self.registry.status()
        for state in (SUCCEEDED, FAILED, ERRORED, CANCELED):
            assert getattr(status, state) == self.counted[state]
        assert status.waiting == len(self.waiting)

    @invariant()
    def announcements_are_the_expected_ones(self) -> None:
        announced = Counter(entry["task_id"] for _, entry in self.client.xrange(keys.READY))
        canceled = Counter(entry["task_id"] for _, entry in self.client.xrange(keys.CANCELED))
        for task_id, expected in self.known.items():
            assert announced[task_id] == expected.announced <= expected.chances
            assert canceled[task_id] == int(expected.canceled)


@pytest.mark.timeout(300)
def test_any_sequence_of_calls_keeps_the_registry_true(redis_url: str) -> None:
    RegistryMachine.url = redis_url
    run_state_machine_as_test(
        RegistryMachine,
        settings=settings(
            max_examples=150 if os.environ.get("RUN_SLOW") == "1" else 40,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
