"""Archives of folders: the same bytes for the same content, and nothing else in them."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.packing.folder import FolderContent
from buttercup_dagster.packing.tarball import (
    DEFAULT_MTIME,
    MemoryContent,
    Tarball,
    entry_mtime,
    write_tarball,
)
from tests.buttercup_dagster.packing.support import picture, unpacked
from tests.support.users import as_ordinary_user

MEBIBYTE = 1024 * 1024


@pytest.fixture(autouse=True)
def no_source_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one of everything that can be packed."""
    root = tmp_path / "source"
    (root / "src" / "deep" / "er").mkdir(parents=True)
    (root / "src" / "empty").mkdir(mode=0o700)
    (root / "src-more").mkdir()
    (root / "src-more" / "big.bin").write_bytes(os.urandom(2 * MEBIBYTE + 17))
    (root / "src" / "deep" / "er" / "main.c").write_text("int main(void) { return 0; }\n")
    (root / "build.sh").write_text("#!/bin/sh\n")
    (root / "build.sh").chmod(0o4775)
    (root / "private").write_text("")
    (root / "private").chmod(0o600)
    (root / "link").symlink_to("src/deep")
    (root / "nowhere").symlink_to("not/there")
    (root / ("n" * 200)).mkdir()
    (root / ("n" * 200) / ("ü" * 100)).write_text("long")
    (root / "to-long").symlink_to("n" * 200 + "/" + "ü" * 100)
    for name in (b"\xff\xfe not utf-8", b"-rf", b" 'quoted\" $HOME `x` ", b"back\\slash", b"100%"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    return root


def pack(root: Path, archive: Path, top: str = "top") -> Tarball:
    return write_tarball(FolderContent(root), top, archive)


def test_everything_is_packed_below_one_folder(source: Path, tmp_path: Path) -> None:
    tarball = pack(source, tmp_path / "one.tar.gz", "pröject")
    tree = unpacked(tarball.path, tmp_path / "out")
    assert [path.name for path in tree.iterdir()] == ["pröject"]
    assert picture(tree / "pröject") == picture(source)
    assert tarball.left_out == ()
    assert tarball.files == sum(what[0] == "file" for what in picture(source).values())
    data = tarball.path.read_bytes()
    assert tarball.bytes == len(data)
    line = subprocess.run(["sha256sum", tarball.path], capture_output=True, check=True).stdout
    assert line.decode().startswith(tarball.sha256)


def test_headers_tell_nothing_of_machine_or_moment(source: Path, tmp_path: Path) -> None:
    tarball = pack(source, tmp_path / "one.tar.gz")
    head = tarball.path.read_bytes()[:10]
    assert head[3] == 0, "the gzip header names a file"
    assert head[4:8] == bytes(4), "the gzip header has a time"
    with tarfile.open(tarball.path) as archive:
        members = archive.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {
        (0, 0, "", "", DEFAULT_MTIME)
    }
    assert {m.mode for m in members if m.isdir()} == {0o755}
    modes = {m.name: m.mode for m in members if m.isfile()}
    assert modes.pop("top/build.sh") == 0o755
    assert set(modes.values()) == {0o644}
    stands = [os.fsencode(m.name + "/" * m.isdir()) for m in members]
    assert stands == sorted(stands)
    assert stands[0] == b"top/"


def test_same_content_makes_the_same_bytes(source: Path, tmp_path: Path) -> None:
    first = pack(source, tmp_path / "one.tar.gz")
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(source, copy, symlinks=True, copy_function=shutil.copyfile)
    (copy / "build.sh").chmod(0o700)
    again = pack(copy, tmp_path / "two.tar.gz")
    assert again.path.read_bytes() == first.path.read_bytes()
    assert again.sha256 == first.sha256


@pytest.mark.parametrize(
    ("change", "value"),
    [("build.sh", 0o644), ("private", 0o700)],
)
def test_who_may_execute_is_content(source: Path, tmp_path: Path, change: str, value: int) -> None:
    first = pack(source, tmp_path / "one.tar.gz")
    (source / change).chmod(value)
    assert pack(source, tmp_path / "two.tar.gz").sha256 != first.sha256


@pytest.mark.parametrize(
    ("value", "mtime"),
    [
        ("1700000000", 1_700_000_000),
        ("1", 1),
        ("8589934591", 8_589_934_591),
        ("", DEFAULT_MTIME),
        ("0", DEFAULT_MTIME),
        ("-5", DEFAULT_MTIME),
        ("8589934592", DEFAULT_MTIME),
        ("1e9", DEFAULT_MTIME),
        ("١٢", DEFAULT_MTIME),
        ("tomorrow", DEFAULT_MTIME),
    ],
)
def test_source_date_epoch(value: str, mtime: int) -> None:
    assert entry_mtime({"SOURCE_DATE_EPOCH": value}) == mtime


def test_source_date_epoch_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1600000000")
    write_tarball(MemoryContent({b"a": b"b"}), "top", tmp_path / "one.tar.gz")
    tree = unpacked(tmp_path / "one.tar.gz", tmp_path / "out")
    assert (tree / "top" / "a").stat().st_mtime == 1_600_000_000


def test_git_and_aixcc_are_left_out_at_any_depth(tmp_path: Path) -> None:
    root = tmp_path / "source"
    for name in ("", "a", "a/b"):
        (root / name / ".git" / "objects").mkdir(parents=True)
        (root / name / ".aixcc").mkdir()
        (root / name / ".aixcc" / "answer").write_text("the vulnerability")
    (root / "worktree").mkdir()
    (root / "worktree" / ".git").write_text("gitdir: /elsewhere\n")
    (root / "linked").mkdir()
    (root / "linked" / ".aixcc").symlink_to("../a")
    for name in (".gitignore", ".github", "x.git", ".aixcc2", ".AIXCC"):
        (root / name).write_text("kept")
    tarball = pack(root, tmp_path / "one.tar.gz")
    tree = unpacked(tarball.path, tmp_path / "out")
    assert sorted(picture(tree / "top")) == sorted(
        b".gitignore .github x.git .aixcc2 .AIXCC a a/b worktree linked".split()
    )
    assert tarball.left_out == ()


def test_links_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("private")
    root = tmp_path / "source"
    root.mkdir()
    (root / "file").symlink_to(secret / "key")
    (root / "folder").symlink_to(secret)
    (root / "up").symlink_to("../secret")
    (root / "self").symlink_to("self")
    tarball = pack(root, tmp_path / "one.tar.gz")
    assert b"private" not in gzip.decompress(tarball.path.read_bytes())
    with tarfile.open(tarball.path) as archive:
        assert {m.name: m.linkname for m in archive if m.issym()} == {
            "top/file": str(secret / "key"),
            "top/folder": str(secret),
            "top/up": "../secret",
            "top/self": "self",
        }
    # The folder itself may be named by a link: that is what the person asked for.
    (tmp_path / "current").symlink_to("source")
    assert pack(tmp_path / "current", tmp_path / "two.tar.gz").sha256 == tarball.sha256


def test_names_of_one_file_become_files(tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (root / "a").write_text("same")
    (root / "b").hardlink_to(root / "a")
    tarball = pack(root, tmp_path / "one.tar.gz")
    tree = unpacked(tarball.path, tmp_path / "out")
    assert (tree / "top" / "a").stat().st_nlink == 1
    assert picture(tree / "top") == picture(root)
    assert tarball.files == 2


def test_what_cannot_be_in_a_task_is_left_out_and_reported(tmp_path: Path) -> None:
    root = tmp_path / "source"
    (root / "bad\nfolder").mkdir(parents=True)
    (root / "bad\nfolder" / "file").write_text("")
    (root / "Icon\r").write_text("")
    (root / "link").symlink_to("to\x01nowhere")
    (root / "good").write_text("")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        with tempfile.TemporaryDirectory() as short:  # a socket's name has little room
            listener.bind(f"{short}/s")
            Path(f"{short}/s").rename(root / "socket")
        tarball = pack(root, tmp_path / "one.tar.gz")
    assert [str(left_out) for left_out in tarball.left_out] == [
        "Icon\\r (the name holds a control character)",
        "bad\\nfolder (the name holds a control character)",
        "link (the text of the link is too long or holds control characters)",
        "pipe (a named pipe)",
        "socket (a socket)",
    ]
    tree = unpacked(tarball.path, tmp_path / "out")
    assert list(picture(tree / "top")) == [b"good"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
def test_devices_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    try:
        os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this container may not make devices")
    tarball = pack(root, tmp_path / "one.tar.gz")
    assert [str(left_out) for left_out in tarball.left_out] == ["null (a device)"]


@pytest.mark.parametrize(
    ("name", "kept", "reason"),
    [
        ("d", 255, "the name is more than 256 folders deep"),
        ("d" * 20, 182, "the name has more than 4095 bytes, or a component of more than 255"),
    ],
)
def test_paths_beyond_what_a_task_may_have(
    tmp_path: Path, name: str, kept: int, reason: str
) -> None:
    """The longer one is beyond what the kernel takes in one path, too."""
    root = tmp_path / "source"
    root.mkdir()
    (root / "good").write_text("")
    before = Path.cwd()
    try:
        os.chdir(root)
        for _ in range(300):
            Path(name).mkdir()
            os.chdir(name)
    finally:
        os.chdir(before)
    tarball = pack(root, tmp_path / "one.tar.gz")
    assert [left_out.reason for left_out in tarball.left_out] == [reason]
    tree = unpacked(tarball.path, tmp_path / "out")
    assert (tree / "top" / "good").exists()
    assert len(picture(tree / "top")) == 1 + kept
    subprocess.run(["rm", "-rf", root], check=True)  # deeper than Python's own removal goes


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that an ordinary user can work in."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.mark.parametrize("what", ["file", "folder", "root"])
def test_unreadable(open_folder: Path, what: str) -> None:
    root = open_folder / "source"
    with as_ordinary_user():
        (root / "folder").mkdir(parents=True)
        (root / "file").write_text("")
        closed = root if what == "root" else root / what
        closed.chmod(0)
        try:
            with pytest.raises(PackingError) as refusal:
                pack(root, open_folder / "one.tar.gz")
        finally:
            closed.chmod(0o700)
    assert str(refusal.value) == (
        f"{closed} cannot be read: Permission denied; make it readable for yourself (chmod u+rX), "
        "or move it out of the folder"
    )
    assert [path.name for path in open_folder.iterdir()] == ["source"]


@pytest.mark.parametrize("size", [0, MEBIBYTE, 5 * MEBIBYTE])
def test_file_that_changes_while_it_is_read(tmp_path: Path, size: int) -> None:
    root = tmp_path / "source"
    root.mkdir()
    file = root / "log"
    file.write_bytes(bytes(3 * MEBIBYTE))

    def change(_: int) -> None:
        os.truncate(file, size)

    archive = tmp_path / "one.tar.gz"
    archive.write_text("an older one")
    with pytest.raises(PackingError) as refusal:
        write_tarball(FolderContent(root), "top", archive, on_progress=change)
    assert str(refusal.value) == (
        f"{file} changed while it was being read; stop what writes to it, then pack again"
    )
    assert archive.read_text() == "an older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.tar.gz", "source"]


def test_file_that_is_written_over_while_it_is_read(tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (root / "database").write_bytes(bytes(3 * MEBIBYTE))

    def change(_: int) -> None:
        with (root / "database").open("r+b") as file:
            file.write(b"another")

    with pytest.raises(PackingError, match="changed while it was being read"):
        write_tarball(FolderContent(root), "top", tmp_path / "one.tar.gz", on_progress=change)


@pytest.mark.parametrize("becomes", ["link", "pipe", "nothing"])
@pytest.mark.parametrize("name", ["later", "later-folder"])
def test_name_that_becomes_something_else(tmp_path: Path, name: str, becomes: str) -> None:
    root = tmp_path / "source"
    (root / "later-folder").mkdir(parents=True)
    (root / "later").write_text("")
    (root / "first").write_text("x")

    def swap(_: int) -> None:
        path = root / name
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
        if becomes == "link":
            path.symlink_to("/etc")
        elif becomes == "pipe":
            os.mkfifo(path)

    with pytest.raises(PackingError, match=f"{name} changed while it was being read"):
        write_tarball(FolderContent(root), "top", tmp_path / "one.tar.gz", on_progress=swap)


def test_archive_that_cannot_be_written(tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    with pytest.raises(PackingError) as refusal:
        pack(root, tmp_path / "missing" / "one.tar.gz")
    assert str(refusal.value) == (
        f"cannot write an archive into {tmp_path / 'missing'}: No such file or directory; choose "
        "another folder for it, or make that one writable and make room in it"
    )


def test_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk without room."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "random").write_bytes(os.urandom(MEBIBYTE))
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from buttercup_dagster.packing.folder import FolderContent\n"
        "from buttercup_dagster.packing.tarball import write_tarball\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "home = Path(sys.argv[1])\n"
        "write_tarball(FolderContent(home / 'source'), 'top', home / 'one.tar.gz')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False
    )
    assert "PackingError: cannot write an archive into" in done.stderr
    assert "File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_archive_is_for_its_owner(tmp_path: Path) -> None:
    write_tarball(MemoryContent({}), "top", tmp_path / "one.tar.gz")
    assert (tmp_path / "one.tar.gz").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("top", ["", ".", "..", "a/b", "a\0b"])
def test_top_folder_has_a_plain_name(tmp_path: Path, top: str) -> None:
    with pytest.raises(ValueError, match="not the name of a folder"):
        write_tarball(MemoryContent({}), top, tmp_path / "one.tar.gz")


def test_progress_grows_to_the_size_of_the_content(source: Path, tmp_path: Path) -> None:
    told: list[int] = []
    write_tarball(FolderContent(source), "top", tmp_path / "one.tar.gz", on_progress=told.append)
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        size = sum(member.size for member in archive)
    assert told == sorted(told)
    assert told[-1] == size
