"""Archives that differ in one thing only."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path


def write_archive(path: Path, *, files: int, file_bytes: int) -> None:
    """Write a gzipped tar of equally long files, half of whose bytes cannot be compressed.

    Args:
        path: the file to make.
        files: how many.
        file_bytes: the length of each.
    """
    source = random.Random(files)  # noqa: S311 - only so that gzip finds nothing to save
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for number in range(files):
            info = tarfile.TarInfo(f"source/part{number % 97:02}/file{number:06}.c")
            info.size = file_bytes
            info.mtime = 1_700_000_000
            content = source.randbytes(file_bytes // 2).ljust(file_bytes, b"\n")
            archive.addfile(info, io.BytesIO(content))
