"""A key that is replaced, removed or damaged while the server runs."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from task_api.auth import (
    CREDENTIALS,
    Credentials,
    KeyUnusable,
    KeyVerifier,
    key_in_file,
    make_credentials,
    make_token,
    read_credentials,
)
from task_api.key_watch import KeyWatch
from tests.support.server import (
    CHEAP,
    KEY_ID,
    TOKEN,
    Client,
    ServerProcess,
    TaskServer,
    basic,
    wire_message,
    wire_task,
)
from tests.support.waiting import wait_for

OTHER_ID = "6f0c8c5e-4d4e-4f0a-9d53-0c6f3f3b8a11"


def new_key(key_id: str = OTHER_ID) -> Credentials:
    token = make_token()
    return Credentials(key_id, token, CHEAP.hash(token))


def shown(key: Credentials) -> str:
    return basic(key.key_id, key.token)


def put(path: Path, key: Credentials, *, before: str = "") -> None:
    replace(path, before + key.lines())


def replace(path: Path, text: str) -> None:
    """Write a file in the way of a careful operator: by one rename, so that it is whole."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name("draft")
    draft.touch(0o600)
    draft.write_text(text)
    draft.replace(path)


@pytest.fixture
def path(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The credentials file, at which servers look more often than usual."""
    monkeypatch.setattr("task_api.key_watch.LOOK_SECONDS", 0.02)
    return home / CREDENTIALS


@pytest.fixture
def first() -> Credentials:
    return new_key(KEY_ID)


@pytest.fixture
def client(redis_url: str, path: Path, first: Credentials) -> Iterator[Client]:
    """A client of a server with the key of the file, which is remembered."""
    put(path, first)
    with TaskServer(redis_url, api_key_id=None, api_token_hash=None) as opened:
        opened.authorization = shown(first)
        assert opened.get("/v1/task/").status == 200
        yield opened


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, client: Client) -> Iterator[pytest.LogCaptureFixture]:
    """What the server logs."""
    logger = logging.getLogger("task_api")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def answers(client: Client, status: int, authorization: str = "") -> bool:
    return client.get("/v1/task/", authorization=authorization).status == status


def test_a_key_that_is_replaced_is_refused_and_the_new_one_let_in(
    client: Client, path: Path, log: pytest.LogCaptureFixture
) -> None:
    second = new_key()
    put(path, second)
    wait_for(lambda: answers(client, 401), "the refusal of the old key")
    wait_for(lambda: answers(client, 200, shown(second)), "the new key")
    assert answers(client, 401)
    told = [text for text in log.messages if "holds another key" in text]
    assert told == [
        f"{path} holds another key; using that (id {OTHER_ID}) and refusing the old one"
    ]
    assert second.token not in log.text
    assert second.token_hash not in log.text


def test_the_same_id_with_another_token(client: Client, path: Path) -> None:
    second = new_key(KEY_ID)
    put(path, second)
    wait_for(lambda: answers(client, 401), "the refusal of the old token")
    wait_for(lambda: answers(client, 200, shown(second)), "the new token")


def test_a_file_that_is_removed_is_made_anew_with_another_key(client: Client, path: Path) -> None:
    path.unlink()
    wait_for(lambda: answers(client, 401), "the refusal of the old key")
    wait_for(path.exists, "the new file")
    made = read_credentials(path)
    assert made.key_id != KEY_ID
    wait_for(lambda: answers(client, 200, shown(made)), "the new key")


def test_a_home_that_is_removed_is_not_made_anew(
    client: Client, path: Path, first: Credentials
) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    wait_for(lambda: answers(client, 503), "the refusal")
    assert not path.parent.exists()
    put(path, first)
    wait_for(lambda: answers(client, 200), "the return of the key")


def test_a_home_that_is_removed_while_a_key_is_made_is_not_made_anew(
    path: Path, first: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(path, first)
    found = key_in_file(path)
    verifier = KeyVerifier(found.key)
    watch = KeyWatch(path, found.key, verifier)

    def move_and_make() -> Credentials:
        path.parent.rename(path.parent.with_name("moved"))
        return make_credentials()

    monkeypatch.setattr("task_api.auth.make_credentials", move_and_make)
    path.unlink()
    watch.look()
    assert not path.parent.exists()
    assert "No such file" in (verifier.problem or "")
    assert list(path.parent.with_name("moved").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        ("", "lacks BUTTERCUP_API_KEY_ID"),
        (f"BUTTERCUP_API_KEY_ID='{KEY_ID}'\n", "lacks"),
        (
            f"BUTTERCUP_API_KEY_ID='{KEY_ID}'\nBUTTERCUP_TASK_SERVER_API_TOKEN_HASH='$x'\n",
            "is damaged",
        ),
    ],
    ids=["empty", "cut", "no hash"],
)
def test_a_file_that_is_damaged_lets_nobody_in(
    client: Client,
    path: Path,
    first: Credentials,
    log: pytest.LogCaptureFixture,
    damage: tuple[str, str],
) -> None:
    content, part = damage
    replace(path, content)
    wait_for(lambda: answers(client, 503), "the refusal")
    refused = client.post("/v1/task/", wire_message(wire_task()))
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.json["detail"] == (
        "the server's own key cannot be used, so it serves nobody; its log says what to do"
    )
    assert answers(client, 401, " ")
    assert client.get("/healthz", authorization=None).status == 200
    ready = client.get("/readyz", authorization=None)
    assert ready.status == 503
    assert ready.json["checks"]["key"] == "cannot be used; the server's log says more"

    told = log.messages[-1]
    assert "until then every request is refused" in told
    assert str(path) in told
    assert part in told
    assert "remove the file" in told

    put(path, first)
    wait_for(lambda: answers(client, 200), "the return of the key")
    assert "key" not in client.get("/readyz", authorization=None).json["checks"]


def test_a_file_that_cannot_be_read_lets_nobody_in(
    client: Client, path: Path, first: Credentials
) -> None:
    link = path.with_name("link")
    link.symlink_to(path.parent)
    link.replace(path)
    wait_for(lambda: answers(client, 503), "the refusal")
    put(path, first)
    wait_for(lambda: answers(client, 200), "the return of the key")


@pytest.mark.parametrize(
    "failure", [KeyUnusable("no memory to check the hash with"), OSError("no handle")], ids=repr
)
def test_a_look_that_fails_is_made_up_for_by_the_next(
    client: Client,
    path: Path,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
) -> None:
    def failing(_: Path) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr("task_api.key_watch.key_in_file", failing)
        replace(path, "# looked at\n" + path.read_text())
        wait_for(lambda: answers(client, 503), "the refusal")
    wait_for(lambda: answers(client, 200), "the return of the key")
    told = [text for text in log.messages if "until then every request is refused" in text]
    assert len(told) == 1


def test_a_folder_that_cannot_be_looked_at_lets_nobody_in_meanwhile(
    client: Client, path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    # Root, as which tests may run, is kept from nothing.
    with monkeypatch.context() as patch:
        for name in ("read_bytes", "stat"):
            patch.setattr(Path, name, forbidden)
        wait_for(lambda: answers(client, 503), "the refusal")
    wait_for(lambda: answers(client, 200), "the return of the key")
    assert any(f"{path} cannot be looked for: Permission denied" in text for text in log.messages)


def test_a_file_that_says_the_same_in_other_words_changes_nothing(
    client: Client, path: Path, first: Credentials, log: pytest.LogCaptureFixture
) -> None:
    put(path, first, before="# checked today\n")
    second = new_key()
    assert answers(client, 200)
    put(path, second)
    wait_for(lambda: answers(client, 200, shown(second)), "the new key")
    assert sum("another key" in text for text in log.messages) == 1


def test_a_key_in_the_settings_is_that_of_the_whole_life(
    redis_url: str, path: Path, first: Credentials
) -> None:
    with TaskServer(redis_url) as opened:
        put(path, first)
        assert answers(opened, 401, shown(first))
        assert answers(opened, 200, basic(KEY_ID, TOKEN))
        path.write_text("")
        assert answers(opened, 200, basic(KEY_ID, TOKEN))
        assert path.read_text() == ""


def test_every_worker_notices(tmp_path: Path, redis_url: str, path: Path) -> None:
    with ServerProcess(tmp_path, "--redis_url", redis_url, "--port=0", "--workers=2") as server:
        url = server.url
        wait_for(lambda: server.text.count("Application startup complete") == 2, "both workers")
        old = read_credentials(path)
        second = new_key()
        clients = [Client(url, old.key_id, old.token) for _ in range(8)]
        assert all(answers(one, 200) for one in clients)
        put(path, second)
        wait_for(lambda: all(answers(one, 401) for one in clients), "the refusals")
        wait_for(lambda: all(answers(one, 200, shown(second)) for one in clients), "the new key")
        for one in clients:
            one.close()
        assert old.token not in server.text
        assert os.fspath(path) in server.text
