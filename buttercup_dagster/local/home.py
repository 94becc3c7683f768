"""The home folder of this machine's processes: whether it can be used, and by whom it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from buttercup_dagster.local.errors import HomeUnusable
from buttercup_dagster.sources.layout import inside_git_work_tree

LOCK: Final = "up.lock"
_ADVICE: Final = "or choose another folder with --home or BUTTERCUP_HOME"


def check_home(home: Path) -> None:
    """Make the home folder, if it is not there, and check that it can be used.

    Args:
        home: absolute path.

    Raises:
        HomeUnusable: it is no folder, belongs to somebody else, cannot be written, can be written
            by other users, or lies in a git work tree.
    """
    tree = inside_git_work_tree(home)
    if tree is not None:
        raise HomeUnusable(
            f"{home} lies in the git work tree {tree}, where `git apply` silently does nothing "
            f"with a task; move it out {_ADVICE}"
        )
    try:
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = home.stat()
    except OSError as error:
        raise HomeUnusable(f"{home} cannot be made: {error.strerror}; {_ADVICE[3:]}") from None
    if found.st_uid != os.geteuid():
        raise HomeUnusable(f"{home} belongs to another user; take it over {_ADVICE}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise HomeUnusable(
            f"{home} can be written by other users (mode {stat.S_IMODE(found.st_mode):04o}), who "
            f"could change tasks and settings in it; run: chmod go-w {home}, {_ADVICE}"
        )
    try:
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise HomeUnusable(
            f"{home} cannot be written to: {error.strerror}; make it writable {_ADVICE}"
        ) from None


@contextlib.contextmanager
def claimed(home: Path) -> Iterator[None]:
    """Be the only one who runs the processes of this home folder.

    The kernel drops the claim when the process ends, however it ends.

    Raises:
        HomeUnusable: another process has it; the text names its process id.
    """
    path = home / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 100).decode("ascii", "replace").strip() or "unknown"
            raise HomeUnusable(
                f"{home} is in use by another `buttercup up` or `demo` (process {owner}); stop it "
                f"with Ctrl-C {_ADVICE}"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)
