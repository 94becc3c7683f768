"""The query, the user name and the password of a URL are shown and kept nowhere."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from buttercup_dagster.sources.errors import SourceError, Stalled
from buttercup_dagster.sources.fetch import Progress, fetch
from tests.buttercup_dagster.sources.conftest import QUICK, Download
from tests.support.archives import digest
from tests.support.cases import case
from tests.support.faults import FaultServer, raw, redirect, reply, serve

DATA = os.urandom(300_000)
WANT = digest(DATA)
SECRET = "s3cr3t-signature"


@case("F26")
def test_secrets_are_in_no_error_and_no_log(
    case: str, server: FaultServer, download: Download, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    answers = {
        "/status": reply(404),
        "/cut": serve(DATA, cut_after=10, ranges=False, etag=""),
        "/reset": serve(DATA, cut_after=10, then="reset", etag=""),
        "/page": reply(200, b"<html>"),
        "/bad": raw(b"nonsense\r\n\r\n"),
        "/fields": raw(b"HTTP/1.1 200 OK\r\n: x\r\nbroken\r\n\r\nabc"),
        "/file": redirect(f"file:///x?{SECRET}"),
        "/port": redirect(f"http://127.0.0.1:9/?{SECRET}"),
        "/loop": redirect(f"/loop?{SECRET}"),
        "/lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nabc"),
    }
    limits = replace(QUICK, attempts=2, max_archive_bytes=10**6)
    urls = [
        f"http://user:{SECRET}@127.0.0.1:{server.port}{path}?sig={SECRET}#{SECRET}"
        for path in answers
    ]
    for path, answer in answers.items():
        server.on(path, answer)
    urls += [
        f"http://user:{SECRET}@[::1?{SECRET}",
        f"http://169.254.169.254/?{SECRET}",
        f"http://nowhere.invalid/?{SECRET}",
        f"gopher://host/?{SECRET}",
        f"file:///nowhere?{SECRET}",
        f"http://host:port{SECRET}/",
    ]
    for url in [*urls, None]:
        chosen = urls if url is None else [url]
        with pytest.raises(SourceError) as caught:
            download(*chosen, sha256=WANT, limits=limits)
        error: BaseException | None = caught.value
        while error is not None:
            assert SECRET not in str(error), chosen
            error = error.__cause__ or error.__context__
    assert SECRET not in caplog.text


@case("F26-files")
def test_secrets_are_in_no_file_and_no_file_name(
    case: str, server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    parts = tmp_path / "parts"
    parts.mkdir()
    seen: list[Progress] = []
    server.on("/a", serve(DATA, cut_after=100_000, then="stall"))
    with pytest.raises(Stalled):
        fetch(
            [f"http://user:{SECRET}@127.0.0.1:{server.port}/a?sig={SECRET}#{SECRET}"],
            tmp_path / "archive",
            sha256=WANT,
            limits=replace(QUICK, read_seconds=0.2, attempts=1),
            on_progress=seen.append,
            parts=parts,
        )
    assert {path.suffix for path in parts.iterdir()} == {".part", ".json"}
    for path in parts.iterdir():
        assert SECRET not in path.name
        assert SECRET.encode() not in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
    assert SECRET not in repr(seen)
    assert SECRET not in caplog.text


@case("F26-origin")
def test_digest_in_the_sidecar_is_of_the_url_without_its_secrets(
    case: str, server: FaultServer, tmp_path: Path
) -> None:
    # Else guesses of a secret could be tried against it.
    contents = set()
    server.on("/a", serve(DATA, cut_after=1000, then="stall"))
    for number in range(2):
        parts = tmp_path / f"parts-{number}"
        parts.mkdir()
        with pytest.raises(Stalled):
            fetch(
                [f"http://user{number}:{number}@127.0.0.1:{server.port}/a?sig={number}"],
                tmp_path / "archive",
                sha256=WANT,
                limits=replace(QUICK, read_seconds=0.2, attempts=1),
                parts=parts,
            )
        (sidecar,) = parts.glob("*.json")
        contents.add(sidecar.read_bytes())
    assert len(contents) == 1
