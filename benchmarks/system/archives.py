"""Two small real archives for each task, and as many different ones as there are tasks."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import uuid
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isal import igzip

from benchmarks.ground import sync
from benchmarks.inputs import CACHE, download
from benchmarks.programs import Missing
from benchmarks.server import serving

PACKAGES: Final = ("libpng1.6", "zlib")
"""Debian source packages of about 1 MB and some hundred files: the repo, and what stands for the
fuzz tooling."""

MARK_BYTES: Final = 36
"""So much of one file is replaced by a UUID, so that the archive is another one."""

COMPRESSION: Final = 1


@dataclass(frozen=True, slots=True)
class Original:
    """A real archive.

    Attributes:
        name: of its file.
        archive_bytes: its length.
        entries: how many it has.
        top: the folder that everything in it lies below, or its first entry's.
        tar: its content, decompressed.
        mark_at: where the first file begins that is long enough for a mark.
    """

    name: str
    archive_bytes: int
    entries: int
    top: str
    tar: bytes
    mark_at: int

    @classmethod
    def read(cls, path: Path) -> Original:
        """Read one.

        Raises:
            Missing: it is no gzipped tar, or holds no file that could be changed.
        """
        content = path.read_bytes()
        try:
            tar = gzip.decompress(content)
            with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
                members = archive.getmembers()
        except (OSError, EOFError, zlib.error, tarfile.TarError):
            raise Missing(f"{path} is no gzipped tar; put another one there") from None
        for member in members:
            if member.isreg() and member.size >= MARK_BYTES:
                top = members[0].name.partition("/")[0]
                return cls(path.name, len(content), len(members), top, tar, member.offset_data)
        raise Missing(f"{path} holds no file of {MARK_BYTES} bytes; put another one there")

    def write_variant(self, path: Path) -> str:
        """Write it with a few bytes of one file changed.

        Returns:
            The digest of the archive.
        """
        mark = str(uuid.uuid4()).encode()
        end = self.mark_at + len(mark)
        archive = igzip.compress(
            b"".join((self.tar[: self.mark_at], mark, self.tar[end:])), compresslevel=COMPRESSION
        )
        path.write_bytes(archive)
        return hashlib.sha256(archive).hexdigest()


@dataclass(frozen=True, slots=True)
class Served:
    """An archive that can be fetched.

    Attributes:
        url: where.
        sha256: its digest.
    """

    url: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of one task.

    Attributes:
        repo: served.
        tooling: served.
        focus: the folder in the repo that the task is about.
    """

    repo: Served
    tooling: Served
    focus: str


class Supply:
    """Sources that no task has had yet."""

    def __init__(self, sources: Sequence[Sources]) -> None:
        self._left = iter(sources)

    def take(self, number: int) -> list[Sources]:
        """The next ones."""
        return [next(self._left) for _ in range(number)]


def find_originals(folder: Path | None) -> tuple[Original, Original]:
    """The two archives that tasks are made of, under the names of their Debian packages.

    Args:
        folder: where they are, or the first two archives in it by name; None for the project's own
            folder, into which missing ones are downloaded.

    Raises:
        Missing: there are none.
    """
    place = folder or CACHE / "sources"
    paths = [place / f"{name}.tar.gz" for name in PACKAGES]
    if not all(path.is_file() for path in paths):
        if folder is None:
            download(PACKAGES, place, _advice())
        else:
            paths = sorted(place.glob("*.tar.gz"))[: len(PACKAGES)]
            if len(paths) < len(PACKAGES):
                raise Missing(f"there are no two archives in {place}; {_advice()}")
    repo, tooling = map(Original.read, paths)
    return repo, tooling


def _advice() -> str:
    return "give a folder with two small .tar.gz files of real source by --sources FOLDER"


@contextmanager
def supply(originals: tuple[Original, Original], number: int, folder: Path) -> Iterator[Supply]:
    """Make different sources for so many tasks, and serve them while the block runs.

    Args:
        originals: of the repo and of the fuzz tooling.
        number: of tasks.
        folder: an empty one.
    """
    folder.mkdir()
    paths = [folder / f"{task}-{role}.tar.gz" for task in range(number) for role in (0, 1)]

    def write(position: int) -> str:
        return originals[position % 2].write_variant(paths[position])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(write, range(len(paths))))
    sync(folder)  # so that nothing of it is written later, while something is measured
    with serving(paths) as urls:
        served = [Served(url, sha256) for url, sha256 in zip(urls, digests, strict=True)]
        yield Supply(
            [
                Sources(repo, tooling, originals[0].top)
                for repo, tooling in zip(served[::2], served[1::2], strict=True)
            ]
        )
