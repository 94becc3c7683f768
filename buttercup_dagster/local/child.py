"""Runs a command that ends, with all it has started, when the process that asked for it is gone.

`python -m buttercup_dagster.local.child PARENT COMMAND…`, as the leader of a process group: Linux
sends SIGTERM when the parent ends (prctl(2), PR_SET_PDEATHSIG), so that not even a killed
`buttercup up` leaves processes behind. Elsewhere the command is run just so. It ends with the
status or the signal of the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
FAREWELL_SECONDS = 3.0
"""How long an orphaned group may take to end in an orderly way."""


def main() -> None:
    """Run the command in the arguments."""
    parent, *command = sys.argv[1:]

    def told_to_end(*_: object) -> None:
        """SIGTERM goes to the whole group; an orphan has to see to it that it has an effect."""
        if os.getppid() != int(parent):
            _end_group()

    signal.signal(signal.SIGTERM, told_to_end)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != int(parent):  # it ended in the meantime
            raise SystemExit(1)
    status = subprocess.Popen(command).wait()
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    raise SystemExit(status)


def _end_group() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    time.sleep(FAREWELL_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
