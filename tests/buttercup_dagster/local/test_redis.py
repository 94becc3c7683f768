"""Which Redis is started for a home folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from buttercup_dagster.local import redis as local_redis
from buttercup_dagster.local.errors import NoRedisServer
from buttercup_dagster.local.redis import embedded_binary, write_configuration
from task_api.records import decoded
from tests.support.redis_server import RedisServer


def other_server(folder: Path, version: str) -> Path:
    """A `redis-server` on the PATH that says which version it is."""
    folder.mkdir()
    program = folder / "redis-server"
    program.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    program.chmod(0o755)
    return program


def test_path_does_not_decide_who_reads_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = embedded_binary(tmp_path)
    program = other_server(tmp_path / "bin", "99.0.0")
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert shutil.which("redis-server") == str(program)
    assert embedded_binary(tmp_path) == before


def test_older_server_is_not_let_at_newer_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_redis, "bundled_binary", lambda: None)
    program = other_server(tmp_path / "bin", "6.2.14")
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert embedded_binary(tmp_path) == str(program)
    (tmp_path / "appendonlydir").mkdir()
    with pytest.raises(NoRedisServer, match=r"written by Redis 7 or newer.*--redis_url"):
        embedded_binary(tmp_path)


def test_machine_without_any_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_redis, "bundled_binary", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoRedisServer, match="install Redis, or name a running one"):
        embedded_binary(tmp_path)


def test_configuration_is_private_and_takes_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b'h\xff "x"')
    folder.mkdir()
    path = write_configuration(folder, port=1, password="p")
    assert path.stat().st_mode & 0o077 == 0
    assert rb'dir "' in path.read_bytes()
    assert b"appendfsync always" in path.read_bytes()


def test_the_append_only_file_is_written_anew_before_it_grows_large(own_redis: RedisServer) -> None:
    """It is started with the same settings; without this, deleting would only make it grow."""
    with own_redis.client as client:
        found: Any = client.config_get("auto-aof-rewrite-*")
        settings = {decoded(name): decoded(value) for name, value in found.items()}
    assert 0 < int(settings["auto-aof-rewrite-percentage"]) <= 100
    assert int(settings["auto-aof-rewrite-min-size"]) <= 64 * 1024 * 1024
