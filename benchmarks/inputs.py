"""The archives to measure with."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.programs import Missing, count_entries

ROOT: Final = Path(__file__).parents[1]
CACHE: Final = ROOT / ".cache"
VARIABLE: Final = "BENCH_SOURCES"

Size = Literal["small", "middle", "large", "many"]

PACKAGES: Final[dict[Size, str]] = {
    "small": "libpng1.6",
    "middle": "php8.2",
    "large": "linux",
    "many": "llvm-toolchain-16",
}
"""Debian source packages of about 1 MB, about 20 MB, more than 50,000 files, and more than 100,000
smaller ones."""

OPTIONAL: Final = frozenset({"many"})
"""What is shown beside the targets, where a folder of one's own has it."""

LEAST_ENTRIES: Final = 50_000
"""What makes an archive large."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive that stays as it is while it is measured with.

    Attributes:
        size: which of them it stands for.
        name: what its file is called.
        path: where it is.
        bytes: its length.
        unpacked_bytes: the length of the tar in it, as gzip noted it; a guess from 4 GiB on.
        entries: how many it has, by `tar tzf`.
        sha256: its digest, 64 lower-case hex digits.
    """

    size: Size
    name: str
    path: Path
    bytes: int
    unpacked_bytes: int
    entries: int
    sha256: str

    @classmethod
    def of(cls, size: Size, path: Path) -> Archive:
        """Look at a file.

        Raises:
            Failed: tar cannot read it.
        """
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(-4, os.SEEK_END)
            unpacked = int.from_bytes(file.read(4), "little")
        return cls(
            size, path.name, path, path.stat().st_size, unpacked, count_entries(path), digest
        )

    @property
    def room_bytes(self) -> int:
        """About how much of a disk its tree takes: every file ends with a page half-used."""
        return self.unpacked_bytes + 4096 * self.entries


def find(folder: Path | None, sizes: Iterable[Size]) -> dict[Size, Archive]:
    """The archives to measure with, each as SIZE.tar.gz or under the name of its Debian package.

    Args:
        folder: where they are; None for the project's own folder, into which missing ones are
            downloaded.
        sizes: which ones are needed.

    Returns:
        Those that are there: all but optional ones.

    Raises:
        Missing: one is not there, or is too small to stand for what it has to.
        Failed: tar cannot read one.
    """
    sizes = list(sizes)
    place = folder or CACHE / "sources"
    lacking = [size for size in sizes if _find(place, size) is None]
    if folder is None and lacking:
        download((PACKAGES[size] for size in lacking), place, _advice(*lacking))
    found: dict[Size, Archive] = {}
    for size in sizes:
        path = _find(place, size)
        if path is None and size in OPTIONAL:
            continue
        if path is None:
            raise Missing(f"there is no {size}.tar.gz in {place}; {_advice(size)}")
        found[size] = Archive.of(size, path)
    large = found.get("large")
    if large is not None and large.entries < LEAST_ENTRIES:
        raise Missing(
            f"{large.path} has only {large.entries} entries; the large archive needs at least "
            f"{LEAST_ENTRIES}"
        )
    return found


def _find(folder: Path, size: Size) -> Path | None:
    candidates = (folder / f"{name}.tar.gz" for name in (size, PACKAGES[size]))
    return next((path for path in candidates if path.is_file() and path.stat().st_size), None)


def download(packages: Iterable[str], folder: Path, advice: str) -> None:
    """Download the archives of Debian source packages, each as NAME.tar.gz.

    Args:
        packages: their names.
        folder: made if it is missing.
        advice: what to do where that is not possible.

    Raises:
        Missing: it is not.
    """
    script = ROOT / ".ci" / "fetch-sources"
    try:
        done = subprocess.run([script, folder, *packages], stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise Missing(f"{script} cannot be run ({error.strerror}); {advice}") from None
    if done.returncode != 0:
        raise Missing(f"the archives could not be downloaded; {advice}")


def _advice(*sizes: Size) -> str:
    files = ", ".join(f"{size}.tar.gz" for size in sizes)
    return f"give a folder with {files} by {VARIABLE}=FOLDER or --sources FOLDER"
