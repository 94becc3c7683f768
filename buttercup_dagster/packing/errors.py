"""What keeps a person's files from becoming the archives of a task."""

from __future__ import annotations

from task_api.task import ButtercupError


class PackingError(ButtercupError):
    """A source cannot be packed or served; the text says what to do about it."""
