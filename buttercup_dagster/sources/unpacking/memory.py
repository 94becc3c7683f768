"""How much memory a process has held."""

from __future__ import annotations

import os


class OwnMemory:
    """The account of this process; made before it gives up opening files, read whenever.

    The other account of the system (getrusage) counts what the process held before its program
    began: that of its parent.
    """

    def __init__(self) -> None:
        try:
            self._handle = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # not Linux
            self._handle = -1

    def peak_bytes(self) -> int:
        """The most that it ever held; 0 where the system does not say."""
        if self._handle >= 0:
            for line in os.pread(self._handle, 8192, 0).splitlines():
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
        return 0
