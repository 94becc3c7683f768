"""The programs that the engine is measured against."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PROGRAMS: Final = ("tar", "gzip", "curl", "sha256sum")

_TARFILE: Final = """\
import sys, tarfile
with tarfile.open(sys.argv[1]) as archive:
    archive.extractall(sys.argv[2], filter="data")
"""
# What a person has set for these programs must not slow them down, nor speed them up.
_UNSET: Final = ("TAR_OPTIONS", "GZIP", "CURL_HOME")


class Missing(Exception):
    """An input, a program or the room to measure is missing; the text says what to do."""


class Failed(Exception):
    """One side of a comparison did not do its work, so that its time says nothing."""


def require(names: Sequence[str] = PROGRAMS) -> None:
    """See that all programs are there.

    Raises:
        Missing: one is not.
    """
    for name in names:
        if shutil.which(name) is None:
            raise Missing(f"there is no {name} on the PATH; install it")


def run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """Run a program to its end.

    Args:
        command: the program and its arguments.
        cwd: the folder to start it in.

    Returns:
        What it printed.

    Raises:
        Failed: its status is not 0.
    """
    environment = {key: value for key, value in os.environ.items() if key not in _UNSET}
    done = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=cwd,
        env=environment | {"LC_ALL": "C"},
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:]
        raise Failed(f"{command[0]} ended with status {done.returncode}: {''.join(words)}")
    return done.stdout


def unpack_with_tar(archive: Path, folder: Path) -> None:
    """`tar xzf`, which has gzip unpack in a process of its own.

    Raises:
        Failed: the archive could not be unpacked.
    """
    run(["tar", "xzf", archive, "-C", folder])


def unpack_with_tarfile(archive: Path, folder: Path) -> None:
    """The standard library's `tarfile` with its safest filter, in a process of this Python.

    Raises:
        Failed: the archive could not be unpacked.
    """
    run([sys.executable, "-I", "-c", _TARFILE, archive, folder])


def fetch_with_curl(url: str, sha256: str, file: Path) -> None:
    """`curl -o`, then `sha256sum`.

    Raises:
        Failed: the file did not arrive, or is another one.
    """
    run(["curl", "-q", "--silent", "--show-error", "--fail", "--noproxy", "*", "-o", file, url])
    if run(["sha256sum", file]).partition(" ")[0] != sha256:
        raise Failed("curl brought another file than the one asked for")


def count_entries(archive: Path) -> int:
    """How many entries an archive has.

    Raises:
        Failed: tar cannot read it.
    """
    return run(["tar", "tzf", archive]).count("\n")
