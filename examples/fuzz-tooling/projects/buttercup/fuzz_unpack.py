#!/usr/bin/env python3
"""Feeds arbitrary bytes to the unpacker, which may refuse them and do nothing else."""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports():
    from buttercup_dagster.sources.archive import ArchiveError, Limits, unpack

LIMITS = Limits(total_bytes=1 << 20, ratio_floor_bytes=1 << 20, entries=1000)


def test_one_input(data: bytes) -> None:
    """Unpack the bytes; only a refusal is expected."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        archive.write_bytes(data)
        try:
            unpack(archive, Path(folder) / "tree", LIMITS)
        except ArchiveError:
            return


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
