"""The processes that unpack: how they are confined, and what becomes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from buttercup_dagster.sources.archive import unpack
from buttercup_dagster.sources.errors import SourceError, UnpackerDied
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
from tests.support.sandbox import Sandbox, child_processes, descendants, left_as_it_was
from tests.support.waiting import wait_for

LARGE_BYTES = 4 * 1024 * MEBIBYTE


class Halt(Exception):
    """Ends an unpacking from its progress callback."""


def write_large(path: Path) -> None:
    """An archive that takes a while: large enough for a second process to be used."""
    before = folder(b"d/") + header(b"d/f", size=base256(LARGE_BYTES))
    write_zeros(path, before, LARGE_BYTES // MEBIBYTE)
    assert path.stat().st_size > 3 * MEBIBYTE


def while_it_runs(sandbox: Sandbox, look: Callable[[set[int]], object]) -> None:
    """Call `look` with the ids of the processes while they unpack, then end them."""
    write_large(sandbox.archive)
    before = child_processes()

    def callback(_done: int) -> None:
        (child,) = child_processes() - before
        look({child} | descendants(child))
        raise Halt

    with pytest.raises(Halt):
        sandbox.unpack(sandbox.archive, on_progress=callback)


def test_processes_are_confined(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUTTERCUP_SECRET", "not for the child")

    def look(processes: set[int]) -> None:
        for process in processes:
            place = Path(f"/proc/{process}")
            lines = (place / "status").read_text().splitlines()
            assert "NoNewPrivs:\t1" in lines
            limits = {
                line[:26].strip(): line[26:].split()[:2]
                for line in (place / "limits").read_text().splitlines()[1:]
            }
            assert limits["Max core file size"] == ["0", "0"]
            for name in ("Max address space", "Max file size", "Max cpu time"):
                assert "unlimited" not in limits[name], name
            assert b"BUTTERCUP_SECRET" not in (place / "environ").read_bytes()
            assert os.getpgid(process) != os.getpgid(0)

    while_it_runs(sandbox, look)


def test_processes_inherit_no_handle(sandbox: Sandbox, tmp_path: Path) -> None:
    """Not even one that is meant to be inherited: it could be written through."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    handle = os.open(secret, os.O_RDWR)
    os.set_inheritable(handle, True)

    def look(processes: set[int]) -> None:
        for process in processes:
            links = Path(f"/proc/{process}/fd").iterdir()
            assert str(secret) not in {str(link.readlink()) for link in links}

    try:
        while_it_runs(sandbox, look)
    finally:
        os.close(handle)


ESCAPE = """
import json, os, socket, sys
from buttercup_dagster.sources.unpacking.confine import confine
folder = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
outside = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY | os.O_DIRECTORY)
told = {"landlock": confine(folder, parent=os.getppid(), most_file_bytes=1000,
                            most_memory_bytes=1 << 30, cpu_seconds=60)}

def attempt(name, action):
    try:
        action()
        told[name] = ""
    except OSError as error:
        told[name] = type(error).__name__

def write(name, handle, count=1):
    new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=handle)
    os.write(new, b"x" * count)
    if os.fstat(new).st_size < count:
        os.write(new, b"x")

attempt("inside", lambda: write("f", folder))
attempt("folder", lambda: os.mkdir("d", dir_fd=folder))
attempt("deeper", lambda: write("d/f", folder))
attempt("link", lambda: os.link("f", "d/g", src_dir_fd=folder, dst_dir_fd=folder))
attempt("symlink", lambda: os.symlink("f", "l", dir_fd=folder))
attempt("large", lambda: write("large", folder, 2000))
attempt("beside", lambda: write("evil", outside))
attempt("below_root", lambda: write("/tmp/buttercup-escape", None))
attempt("read", lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)))
attempt("truncate", lambda: os.truncate(sys.argv[2], 0))
attempt("take", lambda: os.link("sentinel", "taken", src_dir_fd=outside, dst_dir_fd=folder))
attempt("move", lambda: os.rename("f", "moved", src_dir_fd=folder, dst_dir_fd=outside))
attempt("device", lambda: os.mkfifo("pipe", dir_fd=folder))
attempt("connect", lambda: socket.create_connection(("127.0.0.1", 9)))
print(json.dumps(told))
"""


def test_what_a_confined_process_can_do(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    sentinel = tmp_path / "sentinel"
    sentinel.write_text("untouched")
    done = subprocess.run(
        [sys.executable, "-c", ESCAPE, inside, sentinel],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    for allowed in ("inside", "folder", "deeper", "link", "symlink"):
        assert told[allowed] == "", allowed
    assert told["large"] == "OSError"
    if not told["landlock"]:
        pytest.skip("this kernel has no Landlock, or one that is too old")
    for forbidden in ("beside", "below_root", "read", "truncate", "move", "device", "take"):
        assert told[forbidden] in {"PermissionError", "OSError"}, forbidden
    assert sentinel.read_text() == "untouched"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "sentinel"]


@pytest.mark.parametrize("which", ["reader", "writer"])
def test_killed_process_is_an_error_and_leaves_nothing(sandbox: Sandbox, which: str) -> None:
    write_large(sandbox.archive)
    before = child_processes()

    def kill(_done: int) -> None:
        for child in child_processes() - before:
            if which == "writer" and not descendants(child):
                pytest.skip("one core: no second process is used")
            for process in {child} if which == "reader" else descendants(child):
                os.kill(process, signal.SIGKILL)

    with pytest.raises(UnpackerDied) as caught:
        sandbox.unpack(sandbox.archive, on_progress=kill)
    assert caught.value.retryable
    assert str(caught.value).isprintable()


PARENT = """
import sys
from pathlib import Path
from buttercup_dagster.sources.archive import unpack
unpack(Path(sys.argv[1]), Path(sys.argv[2]), on_progress=lambda done: print(done, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    archive = tmp_path / "a"
    write_large(archive)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, archive, tmp_path / "tree"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) > 0
        processes = descendants(parent.pid)
        assert processes
        parent.send_signal(number)
        parent.communicate(timeout=60)
    wait_for(
        lambda: not any(Path(f"/proc/{process}").exists() for process in processes),
        "the processes end with their parent",
    )
    assert not (tmp_path / "tree").exists()
    if number == signal.SIGINT:
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_many_threads_unpack_at_once(tmp_path: Path) -> None:
    good = packed(folder(b"d/"), file(b"d/f", os.urandom(MEBIBYTE)), symlink(b"l", b"d"))
    bad = packed(file(b"d/f", os.urandom(MEBIBYTE)), file(b"../evil"))
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


def test_working_folder_and_environment_have_no_say(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cwd"
    place.mkdir()
    for name in ("os.py", "struct.py", "zlib.py", "isal.py", "buttercup_dagster.py"):
        (place / name).write_text("raise SystemExit('taken from the working folder')")
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv("PYTHONSTARTUP", str(place / "os.py"))
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setenv("LC_ALL", "C")
    assert sandbox.unpack(packed(file("ü".encode()), file(b"caf\xe9"))).files == 2


def test_paths_may_be_relative(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.archive.write_bytes(packed(file(b"f")))
    monkeypatch.chdir(sandbox.root)
    assert unpack(Path("../archive"), Path("relative")).files == 1
    assert (sandbox.root / "relative" / "f").is_file()
