"""file:// URLs: regular files below the allowed folders, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from buttercup_dagster.sources.errors import Blocked, DigestMismatch, SpecError, TooLarge
from buttercup_dagster.sources.fetch import FetchPolicy, fetch
from tests.buttercup_dagster.sources.conftest import QUICK, Download
from tests.support.archives import digest
from tests.support.cases import case
from tests.support.faults import FaultServer, redirect, serve
from tests.support.users import as_ordinary_user

DATA = os.urandom(300_000)
WANT = digest(DATA)
ANYWHERE = FetchPolicy(allow_file=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that files may come from, beside one that they may not come from."""
    root = tmp_path / "a root"
    root.mkdir()
    (root / "x.tgz").write_bytes(DATA)
    beside = tmp_path / "a root-not"
    beside.mkdir()
    (beside / "secret").write_bytes(DATA)
    (root / "link").symlink_to(beside / "secret")
    (root / "folder-link").symlink_to(beside)
    (root / "device-link").symlink_to("/dev/zero")
    (root / "inside").symlink_to("x.tgz")
    (root / "empty").touch()
    os.mkfifo(root / "fifo")
    return root


def test_file_url(root: Path, download: Download) -> None:
    url = (root / "x.tgz").as_uri()
    for policy in (ANYWHERE, FetchPolicy(allow_file=True, file_roots=(root,))):
        fetched = download(url, sha256=WANT, policy=policy)
        assert fetched.path.read_bytes() == DATA
        assert fetched.host == "local file"
        fetched.path.unlink()
    localhost = url.replace("file://", "file://localhost")
    download(localhost, sha256=WANT, policy=ANYWHERE).path.unlink()
    with pytest.raises(Blocked, match="not allowed here"):
        download(url, sha256=WANT)
    with pytest.raises(TooLarge):
        download(url, sha256=WANT, policy=ANYWHERE, limits=replace(QUICK, max_archive_bytes=1000))
    with pytest.raises(DigestMismatch):
        download(url, sha256="0" * 64, policy=ANYWHERE)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        pytest.param("{root}/link", Blocked, id="F28-link-out"),
        pytest.param("{root}/folder-link/secret", Blocked, id="F28-folder-link-out"),
        pytest.param("{root}/device-link", Blocked, id="F28-device-link"),
        pytest.param("{root}/../a%20root-not/secret", Blocked, id="F28-dots"),
        pytest.param("{root}/%2e%2e/a%20root-not/secret", Blocked, id="F28-coded-dots"),
        pytest.param("{root}/..%2Fa%20root-not/secret", Blocked, id="F28-coded-slash"),
        pytest.param("{root}-not/secret", Blocked, id="F28-beside"),
        pytest.param("/dev/zero", Blocked, id="F28-zero"),
        pytest.param("/proc/self/mem", Blocked, id="F28-memory"),
        pytest.param("/proc/self/root{root}-not/secret", Blocked, id="F28-proc-root"),
        pytest.param("{root}/fifo", SpecError, id="F28-fifo"),
        pytest.param("{root}/missing", SpecError, id="F28-missing"),
        pytest.param("{root}/x.tgz/below", SpecError, id="F28-below-a-file"),
        pytest.param("{root}", SpecError, id="F28-directory"),
        pytest.param("{root}/empty", SpecError, id="F28-empty"),
        pytest.param("{root}/%00", SpecError, id="F28-null"),
        pytest.param("{root}/x.tgz?x", SpecError, id="F28-query"),
        pytest.param("{root}/" + "x" * 5000, SpecError, id="F28-long"),
    ],
)
def test_file_url_leads_nowhere_else(
    root: Path, download: Download, path: str, kind: type[Exception]
) -> None:
    policy = FetchPolicy(allow_file=True, file_roots=(root,))
    shown = root.as_uri().removeprefix("file://")
    with pytest.raises(kind):
        download("file://" + path.format(root=shown), sha256=WANT, policy=policy)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/dev/zero", id="F28-zero-anywhere"),
        pytest.param("/proc/self/mem", id="F28-memory-anywhere"),
        pytest.param("/proc/self/environ", id="F28-environment-anywhere"),
        pytest.param("/proc/self/pagemap", id="F28-pages-anywhere"),
        pytest.param("/", id="F28-directory-anywhere"),
    ],
)
def test_without_roots_only_regular_files_are_read(download: Download, path: str) -> None:
    with pytest.raises(SpecError) as caught:
        download(f"file://{path}", sha256=WANT, policy=ANYWHERE)
    assert not caught.value.retryable


@case("F28-host")
def test_file_of_another_host(case: str, root: Path, download: Download) -> None:
    url = (root / "x.tgz").as_uri().replace("file://", "file://elsewhere")
    with pytest.raises(SpecError, match="must be of the form"):
        download(url, sha256=WANT, policy=ANYWHERE)


@case("F28-link-inside")
def test_link_to_a_file_inside_is_followed(case: str, root: Path, download: Download) -> None:
    policy = FetchPolicy(allow_file=True, file_roots=(root,))
    assert download((root / "inside").as_uri(), sha256=WANT, policy=policy).bytes == len(DATA)


@case("F28-root-link")
def test_root_may_be_a_link(case: str, root: Path, tmp_path: Path, download: Download) -> None:
    (tmp_path / "alias").symlink_to(root)
    policy = FetchPolicy(allow_file=True, file_roots=(tmp_path / "alias",))
    assert download((root / "x.tgz").as_uri(), sha256=WANT, policy=policy).bytes == len(DATA)


@case("F28-unreadable")
def test_file_that_may_not_be_read(case: str, root: Path, download: Download) -> None:
    for folder in (root, *root.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    (root / "x.tgz").chmod(0)
    downloads = root.parent / "downloads"
    downloads.chmod(0o777)
    with pytest.raises(SpecError, match="cannot be read") as caught, as_ordinary_user():
        download((root / "x.tgz").as_uri(), sha256=WANT, policy=ANYWHERE)
    assert caught.value.code == "file_unreadable"


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _shrink(path: Path) -> None:
    os.truncate(path, 2 * 2**20 - 1)


@pytest.mark.parametrize(
    "change", [pytest.param(_grow, id="F28-grows"), pytest.param(_shrink, id="F28-shrinks")]
)
def test_file_that_changes_while_it_is_read(
    root: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = root / "big"
    data = os.urandom(2 * 2**20)
    path.write_bytes(data)
    changed = False

    def on_progress(_progress: object) -> None:
        nonlocal changed
        if not changed:
            change(path)
            changed = True

    folder = tmp_path / "downloads"
    folder.mkdir()
    with pytest.raises(SpecError, match="changed its size") as caught:
        fetch(
            [path.as_uri()],
            folder / "archive",
            sha256=digest(data),
            limits=QUICK,
            policy=ANYWHERE,
            on_progress=on_progress,
        )
    assert caught.value.code == "file_changed"
    assert list(folder.iterdir()) == []


@case("F28-redirect")
def test_redirect_never_leads_to_a_file(
    case: str, root: Path, server: FaultServer, download: Download
) -> None:
    url = server.on("/a", redirect((root / "x.tgz").as_uri()))
    with pytest.raises(Blocked, match="something other than http"):
        download(url, sha256=WANT, policy=ANYWHERE)


@case("F28-next-mirror")
def test_file_and_server_are_mirrors_of_each_other(
    case: str, root: Path, server: FaultServer, download: Download
) -> None:
    url = server.on("/a", serve(DATA))
    fetched = download((root / "missing").as_uri(), url, sha256=WANT, policy=ANYWHERE)
    assert fetched.mirror == 1
