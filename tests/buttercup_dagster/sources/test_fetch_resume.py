"""Downloads that go on where an earlier call, or a process that was killed, left off."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buttercup_dagster.sources import unfinished
from buttercup_dagster.sources.disk import locks_exclude
from buttercup_dagster.sources.errors import (
    DigestMismatch,
    HttpStatus,
    NoSpace,
    SpecError,
    Stalled,
    Stopped,
    StorageError,
    TooLarge,
)
from buttercup_dagster.sources.fetch import Fetched, FetchPolicy, Progress, clean_parts, fetch
from buttercup_dagster.sources.stop import Stop
from tests.buttercup_dagster.sources.conftest import QUICK
from tests.support.archives import digest
from tests.support.faults import FaultServer, reply, serve
from tests.support.waiting import wait_for

DATA = os.urandom(300_000)
WANT = digest(DATA)
OTHER = "f" * 64
IMPATIENT = replace(QUICK, read_seconds=0.2, attempts=1)


class Folder:
    """A folder of unfinished downloads, and a place for the finished one."""

    def __init__(self, root: Path) -> None:
        self.parts = root / "parts"
        self.archive = root / "archive"
        self.parts.mkdir()

    def fetch(self, *urls: str, **options: Any) -> Fetched:
        chosen = {"sha256": WANT, "limits": QUICK, **options}
        return fetch(urls, self.archive, parts=self.parts, **chosen)

    @property
    def part(self) -> Path:
        """The only part."""
        (path,) = self.parts.glob("*.part")
        return path

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.parts.iterdir())

    def leave(
        self, data: bytes, *, sha256: str = WANT, number: int = 1, sidecar: bytes | None = None
    ) -> Path:
        """What a process that was killed leaves."""
        path = self.parts / f"{sha256}.{number:016x}.part"
        path.write_bytes(data)
        path.chmod(0o600)
        if sidecar is not None:
            path.with_suffix(".json").write_bytes(sidecar)
        return path


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a part, as the process does that writes it."""
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def ranges(server: FaultServer) -> list[str | None]:
    return [request.fields.get("range") for request in server.requests]


# ---- what stays


def test_finished_download_leaves_nothing_in_the_folder(
    server: FaultServer, folder: Folder
) -> None:
    fetched = folder.fetch(server.on("/a", serve(DATA)))
    assert fetched.path.read_bytes() == DATA
    assert fetched.path.stat().st_mode & 0o777 == 0o444
    assert folder.names == []


@pytest.mark.parametrize("by", ["stop", "stall", "refusal"])
def test_unfinished_download_goes_on_in_the_next_call(
    server: FaultServer, folder: Folder, by: str
) -> None:
    stop = Stop()

    def on_progress(_progress: Progress) -> None:
        if by == "stop":
            stop.request("enough")

    then = "close" if by == "refusal" else "stall"
    url = server.on("/a", serve(DATA, cut_after=100_000, then=then), reply(404))
    expected = {"stop": Stopped, "stall": Stalled, "refusal": HttpStatus}[by]
    with pytest.raises(expected):
        folder.fetch(
            url,
            limits=QUICK if by == "refusal" else IMPATIENT,
            stop=stop,
            on_progress=on_progress,
        )
    size = folder.part.stat().st_size
    assert 0 < size <= 100_000
    assert folder.part.read_bytes() == DATA[:size]
    assert folder.part.name.startswith(f"{WANT}.")
    seen: list[Progress] = []
    server.on("/a", serve(DATA))
    fetched = folder.fetch(url, on_progress=seen.append)
    assert fetched.path.read_bytes() == DATA
    assert server.requests[-1].fields["range"] == f"bytes={size}-"
    assert server.requests[-1].fields["if-range"] == '"v1"'
    assert seen[0] == Progress(size, len(DATA), "")
    assert folder.names == []


def test_part_of_a_process_that_was_killed_is_gone_on_with(
    server: FaultServer, folder: Folder
) -> None:
    url = server.on("/a", serve(DATA, cut_after=200_000, then="stall"), serve(DATA))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from buttercup_dagster.sources.fetch import fetch\n"
        "url, archive, parts, sha256 = sys.argv[1:]\n"
        "fetch([url], Path(archive), sha256=sha256, parts=Path(parts))\n"
    )
    arguments = [url, str(folder.archive), str(folder.parts), WANT]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments])
    try:
        wait_for(
            lambda: [p for p in folder.parts.glob("*.part") if p.stat().st_size == 200_000],
            "200,000 bytes on the disk",
        )
        # While it runs its part is nobody else's.
        assert clean_parts(folder.parts, older_than_seconds=-60) == []
    finally:
        process.kill()
        process.wait()
    assert folder.fetch(url).path.read_bytes() == DATA
    assert ranges(server) == [None, "bytes=200000-"]
    assert server.requests[1].fields["if-range"] == '"v1"'
    assert folder.names == []


def test_whole_part_needs_no_request(server: FaultServer, folder: Folder) -> None:
    folder.leave(DATA)
    fetched = folder.fetch(server.on("/a", serve(DATA)))
    assert fetched.path.read_bytes() == DATA
    assert fetched.path.stat().st_mode & 0o777 == 0o444
    assert (fetched.host, fetched.mirror, fetched.attempts) == ("part file", None, 0)
    assert server.connections == 0
    assert folder.names == []


@pytest.mark.parametrize(
    ("answer", "limits", "error"),
    [
        (serve(DATA[:-1]), QUICK, DigestMismatch),
        (serve(DATA), replace(QUICK, max_archive_bytes=200_000), TooLarge),
        (serve(DATA), replace(QUICK, reserve_bytes=2**60), NoSpace),
        (reply(404), QUICK, HttpStatus),
    ],
)
def test_bytes_that_are_no_use_do_not_stay(
    server: FaultServer, folder: Folder, answer: Any, limits: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        folder.fetch(server.on("/a", answer), limits=limits)
    assert folder.names == []


def test_without_a_digest_nothing_stays(server: FaultServer, folder: Folder) -> None:
    url = server.on("/a", serve(DATA, cut_after=1000, then="stall"))
    with pytest.raises(Stalled):
        folder.fetch(url, sha256=None, limits=IMPATIENT)
    assert folder.names == []
    assert not folder.archive.exists()


# ---- what is taken over, and how


def test_file_that_changed_meanwhile_is_fetched_whole(server: FaultServer, folder: Folder) -> None:
    old = os.urandom(len(DATA))
    url = server.on("/a", serve(old, etag='"old"', cut_after=50_000, then="stall"))
    with pytest.raises(Stalled):
        folder.fetch(url, limits=IMPATIENT)
    server.on("/a", serve(DATA, etag='"new"'))
    assert folder.fetch(url).path.read_bytes() == DATA
    assert server.requests[1].fields["if-range"] == '"old"'
    assert server.count("/a") == 2


def test_other_url_is_asked_without_the_validator_of_the_first(
    server: FaultServer, folder: Folder
) -> None:
    url = server.on("/a", serve(DATA, cut_after=50_000, then="stall"))
    with pytest.raises(Stalled):
        folder.fetch(url, limits=IMPATIENT)
    assert folder.fetch(server.on("/b", serve(DATA))).path.read_bytes() == DATA
    assert server.requests[1].fields["range"] == "bytes=50000-"
    assert "if-range" not in server.requests[1].fields


def test_url_with_a_fresh_signature_is_the_same_url(server: FaultServer, folder: Folder) -> None:
    url = server.on("/a", serve(DATA, cut_after=50_000, then="stall"))
    with pytest.raises(Stalled):
        folder.fetch(f"{url}?sig=1", limits=IMPATIENT)
    server.on("/a", serve(DATA))
    assert folder.fetch(f"{url}?sig=2").path.read_bytes() == DATA
    assert server.requests[1].fields["if-range"] == '"v1"'


def test_wrong_bytes_of_an_earlier_call_earn_exactly_one_clean_try(
    server: FaultServer, folder: Folder
) -> None:
    folder.leave(bytes(50_000))
    fetched = folder.fetch(server.on("/a", serve(DATA)))
    assert fetched.path.read_bytes() == DATA
    assert fetched.condemned == ()
    assert ranges(server) == ["bytes=50000-", None]
    folder.leave(bytes(50_000))
    with pytest.raises(DigestMismatch):
        folder.fetch(server.on("/b", serve(DATA[::-1])))
    assert ranges(server)[2:] == ["bytes=50000-", None]
    assert folder.names == []


def test_part_longer_than_the_archive_is_dropped(server: FaultServer, folder: Folder) -> None:
    folder.leave(DATA + b"more")
    assert folder.fetch(server.on("/a", serve(DATA))).path.read_bytes() == DATA
    assert ranges(server) == ["bytes=300004-", None]


@pytest.mark.parametrize(
    "sidecar",
    [
        b"",
        b'{"url_sha256": "',
        b"[]",
        b"\xff",
        b"[" * 10_000,
        json.dumps({"url_sha256": OTHER, "validator": '"v1"\r\nX: y', "total": None}).encode(),
        json.dumps({"url_sha256": OTHER, "validator": 1, "total": None}).encode(),
        json.dumps({"url_sha256": "x", "validator": "", "total": None}).encode(),
        json.dumps({"url_sha256": OTHER, "validator": "", "total": -1}).encode(),
        json.dumps({"url_sha256": OTHER, "validator": "", "total": "1"}).encode(),
        json.dumps({"url_sha256": OTHER, "validator": "", "total": 5}).encode(),
    ],
)
def test_sidecar_that_cannot_be_read_is_none(
    server: FaultServer, folder: Folder, sidecar: bytes
) -> None:
    folder.leave(DATA[:1000], sidecar=sidecar)
    assert folder.fetch(server.on("/a", serve(DATA))).path.read_bytes() == DATA
    assert ranges(server) == ["bytes=1000-"]
    assert "if-range" not in server.requests[0].fields
    assert folder.names == []


def test_largest_part_wins_and_the_others_go(server: FaultServer, folder: Folder) -> None:
    folder.leave(DATA[:10_000], number=1, sidecar=b"{}")
    folder.leave(DATA[:30_000], number=2, sidecar=b"{}")
    folder.leave(DATA[:20_000], number=3)
    foreign = folder.leave(DATA[:40_000], sha256=OTHER)
    folder.fetch(server.on("/a", serve(DATA)))
    assert ranges(server) == ["bytes=30000-"]
    assert folder.names == [foreign.name]


def test_part_that_is_being_written_is_left_alone(server: FaultServer, folder: Folder) -> None:
    taken = folder.leave(DATA[:30_000], number=1)
    folder.leave(DATA[:10_000], number=2)
    with held(taken):
        assert folder.fetch(server.on("/a", serve(DATA))).path.read_bytes() == DATA
    assert ranges(server) == ["bytes=10000-"]
    assert taken.read_bytes() == DATA[:30_000]


def test_two_calls_at_once_never_write_one_file(server: FaultServer, folder: Folder) -> None:
    # The second call is made from within the first one, which holds its part meanwhile.
    folder.leave(DATA[:10_000])
    url = server.on("/a", serve(DATA))
    inner: list[Fetched] = []

    def on_progress(progress: Progress) -> None:
        if progress.host and not inner:
            other = folder.archive.with_name("other")
            inner.append(fetch([url], other, sha256=WANT, limits=QUICK, parts=folder.parts))

    outer = folder.fetch(url, on_progress=on_progress)
    assert outer.path.read_bytes() == inner[0].path.read_bytes() == DATA
    assert ranges(server) == ["bytes=10000-", None]
    assert folder.names == []


@pytest.mark.parametrize("kind", ["link", "hard-link", "fifo", "folder", "name"])
def test_what_is_no_part_of_ours_is_left_alone(
    server: FaultServer, folder: Folder, tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(DATA[:1000])
    path = folder.parts / f"{WANT}.{1:016x}.part"
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "hard-link":
        path.hardlink_to(outside)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = folder.parts / f"{WANT}.{1:016x}.part.bak"
        path.write_bytes(DATA[:1000])
    folder.fetch(server.on("/a", serve(DATA)))
    assert ranges(server) == [None]
    assert clean_parts(folder.parts, older_than_seconds=-60) == []
    assert folder.names == [path.name]
    assert outside.read_bytes() == DATA[:1000]
    assert outside.stat().st_mode & 0o777 != 0o444


def test_stop_ends_the_reading_of_an_earlier_part(server: FaultServer, folder: Folder) -> None:
    data = os.urandom(3 * 2**20)
    folder.leave(data, sha256=digest(data))
    stop = Stop()
    seen: list[int] = []

    def on_progress(progress: Progress) -> None:
        seen.append(progress.bytes)
        stop.request("enough")

    url = server.on("/a", serve(data))
    with pytest.raises(Stopped):
        folder.fetch(url, sha256=digest(data), stop=stop, on_progress=on_progress)
    assert seen == [2**20]
    assert folder.part.read_bytes() == data
    assert folder.fetch(url, sha256=digest(data)).attempts == 0


def test_part_that_somebody_else_wrote_to_is_not_taken(server: FaultServer, folder: Folder) -> None:
    def on_progress(progress: Progress) -> None:
        if progress.bytes == len(DATA):
            with folder.part.open("ab") as file:
                file.write(b"more")

    with pytest.raises(StorageError, match="300000 bytes of the archive were written and"):
        folder.fetch(server.on("/a", serve(DATA)), on_progress=on_progress)
    assert not folder.archive.exists()
    assert folder.names == []


def test_local_file_replaces_an_earlier_part(folder: Folder, tmp_path: Path) -> None:
    folder.leave(bytes(1000))
    source = tmp_path / "source"
    source.write_bytes(DATA)
    fetched = folder.fetch(source.as_uri(), policy=FetchPolicy(allow_file=True))
    assert fetched.path.read_bytes() == DATA
    assert folder.names == []


# ---- where locks may lie


def test_nothing_is_taken_over_where_locks_may_lie(
    server: FaultServer, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "locks_exclude", lambda _path: False)
    earlier = folder.leave(DATA[:1000])
    url = server.on("/a", serve(DATA, cut_after=5000, then="stall"))
    with pytest.raises(Stalled):
        folder.fetch(url, limits=IMPATIENT)
    assert folder.names == [earlier.name]
    assert folder.fetch(server.on("/a", serve(DATA))).path.read_bytes() == DATA
    assert ranges(server) == [None, None]
    assert earlier.read_bytes() == DATA[:1000]


def test_file_systems_whose_locks_exclude(tmp_path: Path) -> None:
    assert locks_exclude(tmp_path)
    assert locks_exclude(Path("/dev/shm"))
    assert not locks_exclude(Path("/proc"))
    assert not locks_exclude(tmp_path / "missing")


# ---- cleaning


def _age(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def test_parts_that_nobody_came_back_for_are_removed(folder: Folder) -> None:
    old = folder.leave(b"x", number=1, sidecar=b"{}")
    young = folder.leave(b"x", number=2, sidecar=b"{}")
    taken = folder.leave(b"x", number=3, sidecar=b"{}")
    read_only = folder.leave(b"x", number=4)
    read_only.chmod(0o444)
    orphan = folder.leave(b"x", number=5, sidecar=b"{}")
    orphan.unlink()
    note = folder.parts / "note.json"
    note.touch()
    for path in (old, taken, read_only, note, *folder.parts.glob("*1.json")):
        _age(path, 90_000)
    for number in (1, 3, 5):
        _age(folder.parts / f"{WANT}.{number:016x}.json", 90_000)
    with held(taken):
        removed = clean_parts(folder.parts)
    gone = [old.name, old.with_suffix(".json").name, read_only.name]
    assert removed == sorted([*gone, orphan.with_suffix(".json").name])
    kept = (young, young.with_suffix(".json"), taken, taken.with_suffix(".json"), note)
    assert folder.names == sorted(path.name for path in kept)


def test_cleaning_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert clean_parts(tmp_path / "missing") == []


def test_digest_that_is_none_touches_nothing(folder: Folder) -> None:
    earlier = folder.leave(b"x")
    with pytest.raises(SpecError):
        folder.fetch("http://127.0.0.1:9/", sha256="../" + WANT)
    assert folder.names == [earlier.name]
