from __future__ import annotations

import multiprocessing
import random
import threading
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import pytest

from buttercup_dagster.sources.disk import clean_private_folders, private_folder
from buttercup_dagster.sources.errors import DigestMismatch, HttpStatus, SpecError, Stopped
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import Store
from buttercup_dagster.sources.trees import StoredTree
from task_api.task import Source, SourceType
from tests.buttercup_dagster.sources.conftest import QUICK
from tests.support.archives import digest, source_archive
from tests.support.cases import case
from tests.support.faults import FaultServer, reply, serve
from tests.support.waiting import wait_for

DATA = source_archive({"curl/data": random.Random(5).randbytes(200_000)})
WANT = digest(DATA)


def source(*urls: str, sha256: str = WANT) -> Source:
    return Source(SourceType.REPO, sha256, urls)


def test_second_asker_finds_the_archive(server: FaultServer, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    url = server.on("/a", serve(DATA))
    first = store.obtain(source(url), limits=QUICK)
    assert (first.cache_hit, first.host, first.bytes) == (False, "127.0.0.1", len(DATA))
    assert first.path == tmp_path / "store/archives/sha256" / WANT[:2] / WANT
    assert first.path.read_bytes() == DATA
    assert first.path.stat().st_mode & 0o777 == 0o444
    second = store.obtain(source(url, sha256=WANT.upper()), limits=QUICK)
    assert second.cache_hit
    assert second.path == first.path
    assert server.count("/a") == 1
    assert list((tmp_path / "store/parts").iterdir()) == []


def test_stored_archive_serves_even_when_the_url_is_gone(
    server: FaultServer, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    store.obtain(source(server.on("/a", serve(DATA))), limits=QUICK)
    assert store.obtain(source(server.on("/a", reply(404))), limits=QUICK).cache_hit
    assert store.remove(WANT)
    assert not store.remove(WANT)
    with pytest.raises(HttpStatus):
        store.obtain(source(server.url("/a")), limits=QUICK)


@pytest.mark.parametrize(
    "damage",
    [pytest.param(one, id=f"G7-archive-{one}") for one in ("flipped", "cut", "folder", "link")],
)
def test_damaged_archive_is_fetched_again(server: FaultServer, tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path / "store")
    url = server.on("/a", serve(DATA))
    path = store.obtain(source(url), limits=QUICK).path
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(DATA)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_bytes(DATA[:-1] + (b"" if damage == "cut" else bytes([DATA[-1] ^ 1])))
    again = store.tree(source(url), fetch_limits=QUICK)
    assert not again.hit
    assert path.read_bytes() == DATA
    assert not path.is_symlink()
    assert server.count("/a") == 2
    aside = list((tmp_path / "store/quarantine").glob("*"))
    assert [one.name.partition(".")[0] for one in aside] == (
        [WANT] if damage in {"flipped", "cut"} else []
    )


def test_what_another_has_fetched_again_is_not_put_aside(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    url = server.on("/a", serve(DATA))
    path = store.obtain(source(url), limits=QUICK).path
    path.chmod(0o644)
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    original = store.grow
    others: list[str] = []

    def grow(*arguments: Any) -> StoredTree:
        try:
            return original(*arguments)
        except DigestMismatch:
            if not others:
                # Between the reading here and what is done about it, somebody makes the other tree.
                others.append("refuse")
                store.tree(source(url), fetch_limits=QUICK, escaping_links="refuse")
            raise

    monkeypatch.setattr(store, "grow", grow)
    assert not store.tree(source(url), fetch_limits=QUICK).hit
    assert len(store.trees.keys()) == 2
    assert path.read_bytes() == DATA
    assert server.count("/a") == 2
    assert len(list((tmp_path / "store/quarantine").iterdir())) == 1


def test_wrong_bytes_are_not_kept(server: FaultServer, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(DigestMismatch):
        store.obtain(source(server.on("/a", serve(DATA[1:]))), limits=QUICK)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def test_without_digest_it_is_filed_under_what_it_has(server: FaultServer, tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = store.obtain(source(server.on("/a", serve(DATA)), sha256=""), limits=QUICK)
    assert found.sha256 == WANT
    assert found.path == store.archive_path(WANT)


@pytest.mark.parametrize("sha256", ["../../etc/passwd", "0" * 63])
def test_what_is_no_digest_becomes_no_path(tmp_path: Path, sha256: str) -> None:
    with pytest.raises(SpecError):
        Store(tmp_path).obtain(source("http://127.0.0.1/", sha256=sha256))
    assert list(tmp_path.iterdir()) == []


def _obtain(root: Path, url: str, results: SimpleQueue[tuple[str, bool]]) -> None:
    found = Store(root).obtain(source(url), limits=QUICK)
    results.put((found.sha256, found.cache_hit))


def test_processes_share_one_download(server: FaultServer, tmp_path: Path) -> None:
    url = server.on("/a", serve(DATA))
    context = multiprocessing.get_context("spawn")
    results: SimpleQueue[tuple[str, bool]] = context.SimpleQueue()
    processes = [
        context.Process(target=_obtain, args=(tmp_path / "store", url, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = [results.get() for _ in processes]
    assert {sha256 for sha256, _ in found} == {WANT}
    assert sorted(hit for _, hit in found) == [False, True, True, True]
    assert server.count("/a") == 1


def test_wait_for_another_download_can_be_stopped(server: FaultServer, tmp_path: Path) -> None:
    stalled = server.on("/stalled", serve(DATA, cut_after=10, then="stall"))
    first, second = Stop(), Stop()
    store = Store(tmp_path)
    errors: list[str] = []

    def ask(stop: Stop) -> None:
        with pytest.raises(Stopped) as caught:
            store.obtain(source(stalled), limits=QUICK, stop=stop)
        errors.append(str(caught.value))

    threads = [threading.Thread(target=ask, args=(stop,)) for stop in (first, second)]
    threads[0].start()
    server.wait_for_request("/stalled")
    threads[1].start()
    second.request("second")
    threads[1].join(5)
    first.request("first")
    threads[0].join(5)
    assert errors == ["stopped: second", "stopped: first"]
    assert server.count("/stalled") == 1


def _hold(parent: Path, ready: str) -> None:
    with private_folder(parent, "x") as folder:
        (folder / "inside").mkdir(mode=0)
        Path(ready).touch()
        threading.Event().wait()


@case("G4")
def test_only_what_dead_owners_left_is_cleaned(tmp_path: Path, case: str) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    ready = tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(parent, str(ready)))
    process.start()
    wait_for(ready.exists, "the folder of the other process")
    with private_folder(parent, "mine") as mine:
        assert clean_private_folders(parent) == []
        process.kill()
        process.join()
        (left,) = clean_private_folders(parent)
        assert left.startswith("x.")
        assert list(parent.iterdir()) == [mine]
        assert mine.stat().st_mode & 0o777 == 0o700
    assert list(parent.iterdir()) == []
