"""Becomes another program that ends when the process that started it is gone.

`python -m buttercup_dagster.local.child PARENT COMMAND…`: Linux sends SIGTERM when the parent ends
(prctl(2), PR_SET_PDEATHSIG), so that not even a killed `buttercup up` leaves processes behind.
Elsewhere the command is started just so.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process by the command in its arguments."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != int(parent):  # it ended in the meantime
            raise SystemExit(1)
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
