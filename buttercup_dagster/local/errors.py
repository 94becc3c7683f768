"""What keeps this machine from running everything.

ButtercupError
└── LocalError          one line for people; ends the command with status 2
    ├── HomeUnusable    the home folder
    └── NoRedisServer   there is no `redis-server` to start
ServiceFailed           a process does not come up; ends the command with status 1
"""

from __future__ import annotations

from task_api.task import ButtercupError


class LocalError(ButtercupError):
    """Something about this machine has to be changed first; the text says what."""


class HomeUnusable(LocalError):
    """The home folder cannot be used."""


class NoRedisServer(LocalError):
    """There is no `redis-server` on this machine."""


class ServiceFailed(ButtercupError):
    """A process ended again and again, or did not become healthy in time."""
