"""Every Redis key of this project, and the numbers that belong to them.

The Lua scripts get these names as the table `KEY` (`lua_table`), so that no key is spelt twice.
Times in keys and fields are UNIX milliseconds by Redis's own clock.
"""

from __future__ import annotations

from task_api.task import TaskState

PREFIX = "buttercup:"

SCHEMA_VERSION = 1
"""Version of the layout below; raised when an older program could misread it."""

SCHEMA = PREFIX + "schema"
"""String: the schema version of this registry."""

SEQUENCE = PREFIX + "sequence"
"""Counter: how many tasks were ever recorded; gives each its place in every listing."""

TASK = PREFIX + "task:"
"""Hash per task id: the task and where it stands."""

EVENTS = PREFIX + "events:"
"""Stream per task id: its timeline, append-only."""

RECENT_EVENTS = PREFIX + "recent_events"
"""Stream: the latest events of all tasks, trimmed; what `watch` follows."""

INDEX = PREFIX + "index:"
"""Sorted set per state: ids of the tasks in it, by sequence number."""

DUE = PREFIX + "due"
"""Sorted set: pending tasks by the time from which they may be claimed."""

LEASES = PREFIX + "leases"
"""Sorted set: scheduled and downloading tasks by the end of their lease."""

DEADLINES = PREFIX + "deadlines"
"""Sorted set: live tasks by their deadline."""

DOORBELL = PREFIX + "doorbell"
"""List of at most one element: pushed when a task becomes pending, to wake whoever waits."""

COUNTERS = PREFIX + "counters"
"""Hash: succeeded, failed, errored, canceled, and `since`, when they were set to 0."""

WAITING = PREFIX + "waiting"
"""Set: ready tasks whose consumer has submitted something that is not yet judged."""

MESSAGE = PREFIX + "message:"
"""Hash per message id: fingerprint of its body and the answer it got."""

CANCELED_AHEAD = PREFIX + "canceled_ahead:"
"""String per task id: a cancel that came before its task."""

SARIF = PREFIX + "sarif:"
"""Hash per task id: SARIF broadcasts by their sarif_id."""

READY = PREFIX + "ready"
"""Stream for consumers: one entry for each time a task is made ready; again only after a retry."""

CANCELED = PREFIX + "canceled"
"""Stream for consumers: one entry for each task cancelled."""

UNMATERIALIZED = PREFIX + "unmaterialized"
"""Sorted set: ready tasks whose materialization is not confirmed, by when they became ready."""

ENDED = PREFIX + "ended"
"""Sorted set: tasks that are not live by when they ended; what is retired is taken from here."""

RETIRED_FOLDERS = PREFIX + "retired_folders:"
"""Sorted set per machine: retired tasks whose folder may be there, by when they were retired."""

TOKEN_FLOOR = PREFIX + "token_floor"
"""String: the highest token of all retired tasks.

The tokens of a new task begin above it, so that none is given twice for one id.
"""

REMOVALS = PREFIX + "removals"
"""Set: tasks whose folder nobody wants, to be removed on the machine of their last attempt.

Those are cancelled, or ended without having been announced after an attempt had begun.
"""

SENSOR = PREFIX + "sensor"
"""Hash: when the intake sensor was last seen, and what it saw."""

REAPER = PREFIX + "reaper"
"""String: when Redis was last seen at work, so that leases could be renewed."""

ANSWER = PREFIX + "answer:"
"""String per request id: what a script answered, for a request that comes twice."""

WORKERS = PREFIX + "workers"
"""Sorted set: slots of warm workers, each for one run at a time, by the end of their lease."""

OCCUPIED = PREFIX + "occupied"
"""Sorted set: those of them that execute a run or linger, by the end of their lease."""

LINGERING = PREFIX + "lingering"
"""Sorted set: those that wait for another task after a run, by when they are asked no longer."""

WORKER_BELL = PREFIX + "worker_bell"
"""List: an element for each lingering slot that is to look for a task."""

EXECUTING = PREFIX + "executing:"
"""String per run id: the slot that executes it; ends with the slot's lease."""

STOPPING = PREFIX + "stopping:"
"""String per run id: somebody asked for the end of this run."""

RUN_QUEUE = PREFIX + "runs"
"""List: runs that wait for a warm worker; written and read by Celery."""

RUNS_TAKEN = PREFIX + "runs_taken"
"""Hash: runs that a worker has taken from that list and not yet given to a process; Celery's."""

RUNS_TAKEN_INDEX = PREFIX + "runs_taken_index"
"""Sorted set: those by when they were taken; Celery's."""

RUNS_TAKEN_LOCK = PREFIX + "runs_taken_lock"
"""String: the worker that looks for runs whose worker died with them; Celery's."""

CANCELED_AHEAD_MS = 7 * 86_400_000
"""How long a cancel of an unknown task is remembered (contract: 7 days)."""

MESSAGE_MEMORY_MS = 7 * 86_400_000
"""How long after the last deadline in a message its answer is remembered."""

RETIRED_FOLDERS_MS = 30 * 86_400_000
"""How long a machine that is away is expected back to remove folders, after the last one's end."""

MAX_FAILURES = 5
"""Failed attempts after which a task is errored."""

FIRST_BACKOFF_MS = 5_000
LONGEST_BACKOFF_MS = 300_000

SCHEDULED_LEASE_MS = 180_000
"""Lease of a claim while a launcher starts a process for it."""

WARM_LEASE_MS = 30_000
"""Lease of a claim where warm workers are at hand, or by a warm worker itself."""

LINGER_LEASE_MS = 2_000
"""A lingering slot that has not been heard of for this long is counted on no more."""

STOPPING_MEMORY_MS = 86_400_000
"""How long the wish to stop a run is remembered, for a worker that begins it late."""

ANSWER_MEMORY_MS = SCHEDULED_LEASE_MS
"""How long an answer is remembered: until the lease ends that a claim has given."""

RUNNING_LEASE_MS = 10_000
"""Lease of a running attempt; renewed well before it ends."""

REAPER_GAP_MS = 4_000
"""When Redis was not at work for this long, leases may run out without their holders' fault.

A holder renews each second, waits 5 s for an answer and a second more before it asks again. So,
if Redis was away for less than 6 s, it is through 7 s after its last success, which leaves 3 s of
the lease: the gap must be below 6 s. And it must be above the 3 s for which a wait for work may
block before it marks that Redis is at work; the intake's waits block for 2 s.
"""

REAPER_MARK_MS = 100
"""A mark that Redis is at work is made anew after so long; a gap seems that much longer at most."""

RENEWAL_MS = 7_000
"""After such a gap, leases with less than this left are made whole once.

It is the longest that a healthy holder may take to renew: the 5 s until a renewal sent into the gap
is given up, the second before the next one, and one more for that.
"""

RECENT_EVENTS_KEPT = 10_000
MAX_URLS_PER_SOURCE = 8


def index(state: TaskState) -> str:
    """Key of the index of one state."""
    return INDEX + state


def lua_table() -> str:
    """The keys and numbers above as a Lua chunk that defines the table `KEY`."""
    entries = []
    for name, value in globals().items():
        if name.isupper() and isinstance(value, str):
            entries.append(f"{name}='{value}'")
        elif name.isupper() and isinstance(value, int):
            entries.append(f"{name}={value}")
    return "local KEY = {" + ", ".join(entries) + "}\n"
