"""What the settings make of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from buttercup_dagster.engine import Engine
from buttercup_dagster.settings import DownloaderSettings
from buttercup_dagster.sources.errors import Blocked
from buttercup_dagster.sources.prepare import prepare
from buttercup_dagster.sources.stop import Stop
from tests.buttercup_dagster.sources.support import REPO, new_task


def engine_of(home: Path, *, allow_file: bool = False, **settings: object) -> Engine:
    chosen = DownloaderSettings(_env_file=None, home=home, **settings)  # type: ignore[arg-type]
    return Engine.from_settings(chosen, allow_file=allow_file)


def test_the_settings_reach_the_engine(tmp_path: Path) -> None:
    engine = engine_of(
        tmp_path,
        link_mode="copy",
        escaping_links="refuse",
        max_store_bytes=10,
        min_free_bytes=20,
        max_tree_entries=30,
        max_archive_bytes=40,
        max_downloads_per_host=5,
        max_downloads=6,
    )
    options = engine.options
    assert (options.link_mode, options.escaping_links) == ("copy", "refuse")
    assert (options.watermarks.max_store_bytes, options.watermarks.min_free_bytes) == (10, 20)
    assert (options.limits.entries, options.fetch_limits.max_archive_bytes) == (30, 40)
    assert (options.fetch_limits.downloads_per_host, options.fetch_limits.downloads) == (5, 6)
    assert engine.workspace.store == tmp_path / "store"


@pytest.mark.parametrize(
    ("roots", "allow_file", "taken"),
    [
        (None, False, False),
        ("given", False, True),
        ("other, given", False, True),
        ("other", False, False),
        ("other", True, True),
        (None, True, True),
    ],
)
def test_from_where_files_may_come(
    tmp_path: Path, roots: str | None, allow_file: bool, taken: bool
) -> None:
    """Runs take files below the named folders only; who calls `process` may take any."""
    for name in ("given", "other"):
        (tmp_path / name).mkdir()
    archive = tmp_path / "given" / "repo.tar.gz"
    archive.write_bytes(REPO)
    named = ",".join(str(tmp_path / one.strip()) for one in roots.split(",")) if roots else None
    engine = engine_of(tmp_path / "home", allow_file=allow_file, file_roots=named)
    task = new_task(archive.as_uri())
    if taken:
        path = prepare(task, engine.workspace, engine.options, stop=Stop()).path
        assert (path / "src/curl/README").read_bytes() == b"curl\n"
    else:
        with pytest.raises(Blocked):
            prepare(task, engine.workspace, engine.options, stop=Stop())


def test_processes_that_are_started_find_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: dict[str, object] = {
        "redis_url": "redis://:secret@redis.example:6380/2",
        "log_level": "debug",
        "home": tmp_path / "home",
        "tasks_dir": tmp_path / "a tasks folder",
        "store_dir": tmp_path / "store",
        "machine": "second machine",
        "max_runs": 7,
        "linger_seconds": 0.25,
        "drain_seconds": 0.0,
        "runs_per_process": 9,
        "process_bytes": 512 * 1024**2,
        "max_archive_bytes": 11,
        "max_downloads_per_host": 12,
        "max_downloads": 13,
        "max_tree_bytes": 14,
        "max_tree_entries": 15,
        "source_hosts": "*.example.org,example.com",
        "block_private_addresses": True,
        "file_roots": "/srv/a,/srv/b",
        "escaping_links": "refuse",
        "link_mode": "copy",
        "max_store_bytes": 16,
        "min_free_bytes": 17,
        "retention_days": 0.5,
    }
    assert changed.keys() == DownloaderSettings.model_fields.keys()
    chosen = DownloaderSettings(_env_file=None, **changed)  # type: ignore[arg-type]
    # The shared variable says otherwise, as that of a daemon may.
    monkeypatch.setenv("BUTTERCUP_HOME", "/elsewhere")
    for name, value in chosen.environment.items():
        monkeypatch.setenv(name, value)
    found = DownloaderSettings(_env_file=None)
    assert found.model_dump() == changed
