"""The slots of warm workers in Redis: who lives, who lingers, and which run each executes.

A slot executes one run at a time. It is announced under a lease, so that a slot whose process or
machine is gone stops counting by itself.
"""

from __future__ import annotations

import uuid
from typing import Any, Final, cast

from task_api import keys
from task_api.records import Claim, decoded
from task_api.redis_client import LONGEST_BLOCK_SECONDS, OnRedis, translated

SLOT_LEASE_MS: Final = keys.RUNNING_LEASE_MS
"""Lease of a slot and of the run that it executes; renewed each second."""


class Workers(OnRedis):
    """Reads and writes the slots in one Redis.

    Every method may raise `RegistryUnavailable`. An instance may be shared by threads.
    """

    # --- for a slot --------------------------------------------------------------------------

    def announce(
        self,
        slot: str,
        *,
        occupied: bool,
        run_id: str | None = None,
        lease_ms: int = SLOT_LEASE_MS,
    ) -> bool:
        """Say that a slot lives; to be repeated well before the lease ends.

        Args:
            slot: name of the slot, unique among all machines.
            occupied: whether it executes a run or lingers, as opposed to waiting for Celery.
            run_id: the run that it executes, or is about to.
            lease_ms: how long it counts as live, milliseconds.

        Returns:
            Whether somebody asked for the end of that run. A run that has not begun must not begin
            then; it is not recorded as executed.
        """
        stopping = self._run("slot", slot, lease_ms, int(occupied), run_id or "")
        return bool(stopping == "1")

    def finished(self, run_id: str) -> None:
        """Say that a run is executed no more."""
        with translated():
            self._redis.delete(keys.EXECUTING + run_id, keys.STOPPING + run_id)

    def gone(self, name: str) -> None:
        """A slot takes no more runs; or none of the slots of a worker, `worker/…`, does."""
        self._run("slot_gone", name)

    def claim_next(
        self, slot: str, *, linger: bool, lease_ms: int = keys.WARM_LEASE_MS
    ) -> Claim | bool:
        """Take the task that waits longest, for a slot that has finished a run.

        Args:
            slot: name of the slot.
            linger: with nothing to take, whether the slot waits on for `wait`; otherwise it leaves,
                in the same step in which nothing was found.
            lease_ms: how long the start may take, milliseconds.

        Returns:
            The claim; True if there is none; False if the slot has to step back since a run waits
            for a worker.
        """
        linger_ms = keys.LINGER_LEASE_MS if linger else 0
        verdict, *claim = self._run("claim_next", uuid.uuid4().hex, slot, lease_ms, linger_ms)
        if verdict == "claimed":
            task_id, token = claim
            return Claim(task_id, int(token))
        return bool(verdict == "none")

    def wait(self, seconds: float) -> None:
        """For a lingering slot: block until a task may have come, or time is up."""
        # Redis takes a time-out of 0 for "wait for ever".
        block = max(0.01, min(seconds, LONGEST_BLOCK_SECONDS))
        with translated():
            self._redis.blpop([keys.WORKER_BELL], timeout=block)

    # --- for the launcher --------------------------------------------------------------------

    def executor_of(self, run_id: str) -> str | None:
        """The slot that executes a run, or None if no live one does."""
        with translated():
            found = cast(bytes | None, self._redis.get(keys.EXECUTING + run_id))
        return None if found is None else str(decoded(found))

    def stop_run(self, run_id: str) -> str | None:
        """Ask for the end of a run.

        Returns:
            The slot that executes it, which will end it; None if no slot does, and none will.
        """
        return self._run("stop_run", run_id) or None

    def live(self) -> list[str]:
        """The names of all live slots."""
        with translated():
            after = f"({self._now_ms()}"
            found = cast(list[bytes], self._redis.zrange(keys.WORKERS, after, "+inf", byscore=True))
        return [str(decoded(slot)) for slot in found]

    def _run(self, script: str, *arguments: str | float) -> Any:
        with translated():
            return decoded(self._scripts[script](args=arguments))
