"""The child process that unpacks: how it is confined, and what becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from buttercup_dagster.sources.archive import unpack
from buttercup_dagster.sources.errors import SourceError
from tests.support.archives import (
    MEBIBYTE,
    base256,
    file,
    folder,
    header,
    packed,
    symlink,
    write_zeros,
)
from tests.support.sandbox import Sandbox, child_processes, left_as_it_was
from tests.support.waiting import wait_for

LARGE_BYTES = 4 * 1024 * MEBIBYTE


class Halt(Exception):
    """Ends an unpacking from its progress callback."""


def while_it_runs(sandbox: Sandbox, look: Callable[[int], None]) -> None:
    """Call `look` with the id of the child process while it unpacks, then end it."""
    write_zeros(sandbox.archive, header(b"f", size=base256(LARGE_BYTES)), LARGE_BYTES // MEBIBYTE)
    before = child_processes()

    def callback(_done: int) -> None:
        (child,) = child_processes() - before
        look(child)
        raise Halt

    with pytest.raises(Halt):
        sandbox.unpack(sandbox.archive, on_progress=callback)


def fields_of(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {key: value.strip() for key, _, value in pairs}


def test_child_is_confined(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUTTERCUP_SECRET", "not for the child")

    def look(child: int) -> None:
        place = Path(f"/proc/{child}")
        status = fields_of(place / "status")
        assert status["NoNewPrivs"] == "1"
        limits = {
            line[:26].strip(): line[26:].split()
            for line in (place / "limits").read_text().splitlines()[1:]
        }
        assert limits["Max core file size"][:2] == ["0", "0"]
        assert limits["Max address space"][0] != "unlimited"
        assert limits["Max file size"][0] != "unlimited"
        assert b"BUTTERCUP_SECRET" not in (place / "environ").read_bytes()

    while_it_runs(sandbox, look)


def test_child_inherits_no_handle(sandbox: Sandbox, tmp_path: Path) -> None:
    """Not even one that is meant to be inherited: it could be written through."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    handle = os.open(secret, os.O_RDWR)
    os.set_inheritable(handle, True)

    def look(child: int) -> None:
        opened = [os.readlink(link) for link in Path(f"/proc/{child}/fd").iterdir()]  # noqa: PTH115
        assert str(secret) not in opened

    try:
        while_it_runs(sandbox, look)
    finally:
        os.close(handle)


def test_killed_child_is_an_error_and_leaves_nothing(sandbox: Sandbox) -> None:
    write_zeros(sandbox.archive, header(b"f", size=base256(LARGE_BYTES)), LARGE_BYTES // MEBIBYTE)
    before = child_processes()

    def kill(_done: int) -> None:
        for child in child_processes() - before:
            os.kill(child, signal.SIGKILL)

    with pytest.raises(SourceError) as caught:
        sandbox.unpack(sandbox.archive, on_progress=kill)
    assert str(caught.value).isprintable()


PARENT = """
import sys
from pathlib import Path
from buttercup_dagster.sources.archive import unpack
unpack(Path(sys.argv[1]), Path(sys.argv[2]), on_progress=lambda done: print(done, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_child_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    archive = tmp_path / "a"
    write_zeros(archive, header(b"f", size=base256(LARGE_BYTES)), LARGE_BYTES // MEBIBYTE)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, archive, tmp_path / "tree"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) > 0
        children = child_processes(parent.pid)
        assert children
        parent.send_signal(number)
        parent.communicate(timeout=60)
    wait_for(
        lambda: not any(Path(f"/proc/{child}").exists() for child in children),
        "the child ends with its parent",
    )
    assert not (tmp_path / "tree").exists()
    if number == signal.SIGINT:
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_many_threads_unpack_at_once(tmp_path: Path) -> None:
    good = packed(folder(b"d/"), file(b"d/f", os.urandom(100_000)), symlink(b"l", b"d"))
    bad = packed(file(b"d/f"), file(b"../evil"))
    for name, data in (("good", good), ("bad", bad)):
        (tmp_path / name).write_bytes(data)
    places = tmp_path / "places"
    places.mkdir()

    def run(number: int) -> bool:
        archive = tmp_path / ("bad" if number % 3 == 0 else "good")
        try:
            manifest = unpack(archive, places / str(number))
        except SourceError as error:
            return error.code == "climbing_name" and number % 3 == 0
        return manifest.differences(places / str(number)) == [] and number % 3 != 0

    with left_as_it_was(), ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(24)))
    names = {path.name for path in places.iterdir()}
    assert names == {str(number) for number in range(24) if number % 3}


def test_works_with_another_folder_and_environment(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the folder in which the caller works nor what its variables say has a bearing."""
    place = tmp_path / "cwd"
    place.mkdir()
    for name in ("tarfile.py", "zlib.py", "json.py", "isal.py"):
        (place / name).write_text("raise SystemExit('taken from the working folder')")
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv("PYTHONSTARTUP", str(place / "json.py"))
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setenv("LC_ALL", "C")
    assert sandbox.unpack(packed(file("ü".encode()), file(b"caf\xe9"))).files == 2
    sandbox.archive.write_bytes(packed(file(b"f")))
    monkeypatch.chdir(sandbox.root)
    assert unpack(Path("../archive"), Path("relative")).files == 1
    assert (sandbox.root / "relative" / "f").is_file()
