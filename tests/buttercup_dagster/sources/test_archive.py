"""Unpacking as its callers see it: what it takes, tells, and leaves."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from buttercup_dagster.sources.archive import Limits, Usage, unpack
from buttercup_dagster.sources.errors import (
    DeadlinePassed,
    DigestMismatch,
    LayoutError,
    Stopped,
    StorageError,
)
from buttercup_dagster.sources.stop import Stop
from tests.support.archives import (
    MEBIBYTE,
    base256,
    digest,
    file,
    folder,
    hardlink,
    header,
    packed,
    symlink,
    write_zeros,
)
from tests.support.sandbox import Sandbox, left_as_it_was

ROOT = Path(__file__).parents[3]
ENDLESS_BYTES = 8 * 1024 * MEBIBYTE


def write_endless(path: Path) -> None:
    """An archive of one file so large that no test waits for its end."""
    write_zeros(path, header(b"big", size=base256(ENDLESS_BYTES)), ENDLESS_BYTES // MEBIBYTE)


def test_everything_that_an_archive_may_hold(sandbox: Sandbox) -> None:
    manifest = sandbox.unpack(
        packed(
            folder(b"top/", mtime=1_500_000_000),
            folder(b"top/empty/"),
            file(b"top/run", b"#!/bin/sh\n", mode=0o755, mtime=1_600_000_000),
            file(b"top/nothing", b""),
            hardlink(b"top/again", b"top/run"),
            symlink(b"top/link", b"run"),
        )
    )
    assert list(manifest.entries) == [
        "top",
        "top/empty",
        "top/run",
        "top/nothing",
        "top/again",
        "top/link",
    ]
    run = (sandbox.tree / "top/run").stat()
    assert (run.st_mode, run.st_nlink, run.st_mtime) == (0o100755, 2, 1_600_000_000)
    assert (sandbox.tree / "top").stat().st_mtime == 1_500_000_000
    assert (sandbox.tree / "top/link").read_bytes() == b"#!/bin/sh\n"
    assert (manifest.files, manifest.directories, manifest.bytes) == (2, 2, 10)
    assert (manifest.hardlinks, manifest.symlinks) == (1, 1)
    assert manifest.top_level == ("top",)


def test_destination_must_be_new(tmp_path: Path) -> None:
    archive = tmp_path / "a"
    archive.write_bytes(packed(file(b"x")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("full")
    (tmp_path / "dangling").symlink_to("nowhere")
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in ("full", "empty", "link", "dangling", "a"):
        with left_as_it_was(), pytest.raises(LayoutError, match="exists already"):
            unpack(archive, tmp_path / name)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["kept"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_parent_must_be_a_folder(tmp_path: Path) -> None:
    archive = tmp_path / "a"
    archive.write_bytes(packed(file(b"x")))
    for name in ("none/tree", "a/tree"):
        with left_as_it_was(), pytest.raises(StorageError):
            unpack(archive, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_archive_must_be_a_file(tmp_path: Path) -> None:
    with left_as_it_was(), pytest.raises(FileNotFoundError):
        unpack(tmp_path / "missing", tmp_path / "tree")
    with left_as_it_was(), pytest.raises(StorageError):
        unpack(tmp_path, tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_digest_is_that_of_the_bytes_that_were_read(sandbox: Sandbox) -> None:
    data = packed(file(b"f"), folder(b"d/"))
    assert sandbox.unpack(data, sha256=digest(data)).files == 1
    plain = bytes(1024)
    assert sandbox.unpack(plain, sha256=digest(plain)).files == 0
    with pytest.raises(DigestMismatch) as caught:
        sandbox.unpack(data + bytes(512), sha256=digest(data))
    assert caught.value.got == digest(data + bytes(512))
    assert caught.value.want == digest(data)
    assert not caught.value.retryable


def test_progress_is_told_in_the_thread_of_the_caller(sandbox: Sandbox) -> None:
    size = 40 * MEBIBYTE
    write_zeros(sandbox.archive, header(b"f", size=size), size // MEBIBYTE)
    told: list[int] = []
    threads: set[int] = set()

    def tell(done: int) -> None:
        told.append(done)
        threads.add(threading.get_ident())

    sandbox.unpack(sandbox.archive, on_progress=tell)
    assert threads == {threading.get_ident()}
    assert told == sorted(told)
    assert 0 < told[-1] <= size + 3 * 512


def test_error_of_a_callback_ends_the_unpacking(sandbox: Sandbox) -> None:
    write_endless(sandbox.archive)

    def fail(_done: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sandbox.unpack(sandbox.archive, on_progress=fail)


@pytest.mark.parametrize("how", ["request", "before", "deadline"])
def test_stop_ends_a_long_unpacking(sandbox: Sandbox, how: str) -> None:
    write_endless(sandbox.archive)
    deadline_ms = int(time.time() * 1000) + 300 if how == "deadline" else None
    stop = Stop(deadline_ms)
    if how == "before":
        stop.request("cancelled")

    def request(_done: int) -> None:
        if how == "request":
            stop.request("cancelled")

    with pytest.raises(DeadlinePassed if how == "deadline" else Stopped):
        sandbox.unpack(sandbox.archive, stop=stop, on_progress=request)


def test_stop_from_another_thread(sandbox: Sandbox) -> None:
    write_endless(sandbox.archive)
    stop = Stop()
    started = threading.Event()

    def request() -> None:
        started.wait(60)
        stop.request("cancelled")

    other = threading.Thread(target=request)
    other.start()
    try:
        with pytest.raises(Stopped, match="cancelled"):
            sandbox.unpack(sandbox.archive, stop=stop, on_progress=lambda _done: started.set())
    finally:
        started.set()
        other.join()


def test_time_limit(sandbox: Sandbox) -> None:
    write_endless(sandbox.archive)
    error = sandbox.refusal(sandbox.archive, Limits(seconds=0.5))
    assert error.code == "took_too_long"


def test_usage_is_told_whether_it_works_or_not(sandbox: Sandbox) -> None:
    taken: list[Usage] = []
    zeros = file(b"zeros", bytes(64 * MEBIBYTE))
    sandbox.unpack(packed(zeros))
    taken += sandbox.usage
    sandbox.refusal(packed(zeros, file(b"../f")))
    taken += sandbox.usage
    with pytest.raises(DigestMismatch):
        sandbox.unpack(packed(zeros), sha256="0" * 64)
    taken += sandbox.usage
    assert len(taken) == 3
    assert all(one.peak_bytes > MEBIBYTE for one in taken)
    assert all(one.cpu_seconds > 0 for one in taken)


def test_each_code_is_documented() -> None:
    sources = ROOT / "buttercup_dagster" / "sources"
    files = [*sources.glob("unpacking/*.py"), sources / "unpacker.py", sources / "archive.py"]
    text = "".join(path.read_text() for path in files)
    raised = set(re.findall(r'[Rr]efus(?:e|al)\(\s*"(\w+)"', text))
    raised |= set(re.findall(r'code="(\w+)"', text)) | set(
        re.findall(r'b"A", b"([a-z_]+)\\t', text)
    )
    assert len(raised) > 40
    page = (ROOT / "docs" / "reference" / "unpacking.md").read_text()
    errors = page.partition("## Errors")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", errors, re.MULTILINE)) == raised
