"""The key: who may call, and where the key comes from."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import argon2
import pytest
from dotenv import dotenv_values

from task_api.auth import (
    CREDENTIALS,
    REMEMBERED_SECONDS,
    ApiKey,
    KeyUnusable,
    KeyVerifier,
    basic_credentials,
    hash_token,
    make_token,
    resolve_key,
)
from task_api.context import VERIFICATIONS_AT_ONCE
from task_api.settings import TaskServerSettings
from tests.support.server import (
    CHEAP,
    KEY_ID,
    TOKEN,
    TOKEN_HASH,
    Client,
    TaskServer,
    basic,
    wire_message,
    wire_task,
)
from tests.support.users import as_ordinary_user
from tests.support.waiting import wait_for

UNKNOWN_ID = "6f0c8c5e-4d4e-4f0a-9d53-0c6f3f3b8a11"
PATHS = [
    ("POST", "/v1/task/"),
    ("DELETE", "/v1/task/"),
    ("GET", "/v1/task/"),
    ("DELETE", f"/v1/task/{KEY_ID}/"),
    ("GET", f"/v1/task/{KEY_ID}/"),
    ("POST", f"/v1/task/{KEY_ID}/retry/"),
    ("POST", f"/v1/task/{KEY_ID}/outcome/"),
    ("POST", "/v1/sarif/"),
    ("GET", "/status/"),
    ("DELETE", "/status/"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("slash", ["/", ""])
def test_nothing_is_open(client: Client, method: str, path: str, slash: str) -> None:
    path = path.removesuffix("/") + slash
    # The key comes first: a body that is wrong in every way does not matter yet.
    answer = client.call(method, path, raw=b"{", authorization=None)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="buttercup"'
    assert answer.json == {
        "detail": "send HTTP Basic credentials: the key's id as user name, its token as password"
    }


@pytest.mark.parametrize(
    "authorization",
    [
        basic(KEY_ID, "wrong"),
        basic(KEY_ID, ""),
        basic(KEY_ID, TOKEN + "x"),
        basic(KEY_ID, TOKEN.partition(":")[0]),
        basic(UNKNOWN_ID, TOKEN),
        basic("", TOKEN),
        basic("ü", "ü"),
    ],
)
def test_a_wrong_key_is_refused(client: Client, authorization: str) -> None:
    answer = client.get("/status/", authorization=authorization)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert "unknown key id or wrong token" in answer.json["detail"]
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"\xff:\xfe").decode(),
        f"Bearer {TOKEN}",
        "Basic Basic Basic",
    ],
)
def test_a_malformed_header_is_refused(client: Client, authorization: str) -> None:
    answer = client.get("/status/", authorization=authorization or " ")
    assert answer.status == 401
    assert "send HTTP Basic credentials" in answer.json["detail"]


def test_the_key_in_other_spellings(client: Client) -> None:
    assert client.get("/status/", authorization=basic(KEY_ID.upper(), TOKEN)).status == 200
    shout = basic(KEY_ID, TOKEN).replace("Basic", "BASIC ")
    assert client.get("/status/", authorization=shout).status == 200


def test_many_callers_at_once(client: Client) -> None:
    """More callers than threads that verify: each of them is served."""
    statuses: list[int] = []
    own = [Client(client.url) for _ in range(12)]
    threads = [
        threading.Thread(target=lambda one=one: statuses.append(one.get("/status/").status))
        for one in own
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in own:
        one.close()
    assert statuses == [200] * 12


def test_basic_credentials_end_the_name_at_the_first_colon() -> None:
    assert basic_credentials(basic("a", "b:c:")) == ("a", "b:c:")
    assert basic_credentials(None) is None


def test_a_made_token_is_long_and_verifies() -> None:
    token = make_token()
    assert len(token) >= 32
    assert token.isalnum()
    verifier = KeyVerifier(ApiKey(KEY_ID, hash_token(token)))
    assert verifier.verify(KEY_ID, token)
    assert not verifier.verify(KEY_ID, make_token())
    assert token not in repr(verifier.__dict__)


# --- remembered ---------------------------------------------------------------------------------


def test_what_was_right_is_remembered_and_what_was_wrong_is_not() -> None:
    verifier = KeyVerifier(ApiKey(KEY_ID, TOKEN_HASH))
    assert not verifier.remembers(KEY_ID, TOKEN)
    assert not verifier.verify(KEY_ID, "wrong")
    assert not verifier.verify(UNKNOWN_ID, TOKEN)
    for key_id, token in ((KEY_ID, "wrong"), (UNKNOWN_ID, TOKEN), (KEY_ID, TOKEN)):
        assert not verifier.remembers(key_id, token)

    assert verifier.verify(KEY_ID, TOKEN)
    assert verifier.remembers(KEY_ID, TOKEN)
    assert verifier.remembers(KEY_ID.upper(), TOKEN)
    for key_id, token in (
        (KEY_ID, "wrong"),
        (KEY_ID, ""),
        (KEY_ID, TOKEN + "x"),
        (KEY_ID, TOKEN.lower()),
        (UNKNOWN_ID, TOKEN),
        ("", TOKEN),
        ("", f"{KEY_ID}:{TOKEN}"),
    ):
        assert not verifier.remembers(key_id, token)
        assert not verifier.verify(key_id, token)
    assert verifier.remembers(KEY_ID, TOKEN)
    assert TOKEN not in repr(vars(verifier))
    one, other = KeyVerifier(ApiKey(KEY_ID, TOKEN_HASH))._held, verifier._held
    assert one is not None
    assert other is not None
    assert one.verify(KEY_ID, TOKEN)
    assert one._remembered[0] != other._remembered[0]


def test_a_key_that_was_replaced_is_forgotten() -> None:
    verifier = KeyVerifier(ApiKey(KEY_ID, TOKEN_HASH))
    assert verifier.check(KEY_ID, TOKEN)
    verifier.use(ApiKey(UNKNOWN_ID, CHEAP.hash("another")))
    assert not verifier.remembers(KEY_ID, TOKEN)
    assert not verifier.check(KEY_ID, TOKEN)
    assert verifier.check(UNKNOWN_ID, "another")
    verifier.refuse("it is damaged")
    assert not verifier.remembers(UNKNOWN_ID, "another")
    assert not verifier.check(UNKNOWN_ID, "another")
    assert verifier.problem == "it is damaged"
    verifier.use(ApiKey(KEY_ID, TOKEN_HASH))
    assert not verifier.remembers(KEY_ID, TOKEN)
    assert verifier.check(KEY_ID, TOKEN)
    assert verifier.problem is None


def test_a_key_that_is_replaced_while_it_is_verified_lets_nobody_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verifier = KeyVerifier(ApiKey(KEY_ID, TOKEN_HASH))
    verify = argon2.PasswordHasher.verify

    def slow(hasher: argon2.PasswordHasher, token_hash: str, token: str) -> bool:
        monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)
        found = verify(hasher, token_hash, token)
        verifier.use(ApiKey(UNKNOWN_ID, CHEAP.hash("another")))
        return found

    monkeypatch.setattr(argon2.PasswordHasher, "verify", slow)
    assert not verifier.verify(KEY_ID, TOKEN)
    assert not verifier.remembers(KEY_ID, TOKEN)


def test_of_many_who_come_at_once_with_the_key_few_are_verified(
    redis_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others learn, when they have waited for their turn, that it is known by now."""
    slow = argon2.PasswordHasher(time_cost=20, memory_cost=8192, parallelism=1).hash(TOKEN)
    server = TaskServer(redis_url, api_token_hash=slow)
    verified = []
    verify = KeyVerifier.verify

    def counted(verifier: KeyVerifier, key_id: str, token: str) -> bool:
        verified.append(key_id)
        return verify(verifier, key_id, token)

    monkeypatch.setattr(KeyVerifier, "verify", counted)
    with server as client, ThreadPoolExecutor(12) as senders:
        answers = [senders.submit(client.get, "/v1/task/") for _ in range(12)]
        assert {answer.result().status for answer in answers} == {200}
    assert len(verified) <= VERIFICATIONS_AT_ONCE


def test_a_key_is_forgotten_some_time_after_its_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = KeyVerifier(ApiKey(KEY_ID, TOKEN_HASH))
    now = 1000.0
    monkeypatch.setattr("task_api.auth.time.monotonic", lambda: now)
    assert verifier.verify(KEY_ID, TOKEN)
    for _ in range(3):
        now += REMEMBERED_SECONDS - 1
        assert not verifier.remembers(KEY_ID, "wrong")
        assert verifier.remembers(KEY_ID, TOKEN)
    now += REMEMBERED_SECONDS
    assert not verifier.remembers(KEY_ID, TOKEN)
    assert verifier.verify(KEY_ID, TOKEN)
    assert verifier.remembers(KEY_ID, TOKEN)


def test_a_known_sender_does_not_wait_behind_wrong_keys(redis_url: str, home: Path) -> None:
    slow = argon2.PasswordHasher(time_cost=20, memory_cost=8192, parallelism=1).hash(TOKEN)
    server = TaskServer(redis_url, api_token_hash=slow)
    with server as client, ThreadPoolExecutor(12) as guessers:
        assert client.get("/status/").status == 200
        wrong = basic(KEY_ID, "wrong")
        guesses = [guessers.submit(client.get, "/v1/task/", authorization=wrong) for _ in range(12)]
        queue = server.context.verification_limit
        wait_for(lambda: queue.statistics().tasks_waiting >= 8, "guesses that wait")
        assert client.get("/status/").status == 200
        assert client.post("/v1/task/", wire_message(wire_task())).status == 202
        assert not all(guess.done() for guess in guesses)
        assert {guess.result().status for guess in guesses} == {401}


# --- the configured hash -----------------------------------------------------------------------

ARGON2I = argon2.PasswordHasher(type=argon2.Type.I, time_cost=1, memory_cost=8, parallelism=1).hash(
    "x"
)


@pytest.mark.parametrize(
    ("token_hash", "part"),
    [
        ("plain-token", "is not an Argon2id hash, which begins with $argon2id$"),
        ("=19=8,t=1,p=1", "single quotes: shells and .env files replace what follows a $"),
        pytest.param(ARGON2I, "is not an Argon2id hash", id="argon2i"),
        pytest.param(TOKEN_HASH[:-30], "is cut or malformed", id="cut"),
        pytest.param(TOKEN_HASH.rpartition("$")[0], "is cut or malformed", id="without-digest"),
        ("$argon2id$", "is cut or malformed"),
        ("$argon2id$v=19$m=1$x$y", "is cut or malformed"),
        pytest.param(
            argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(""),
            "is the hash of an empty token",
            id="empty-token",
        ),
    ],
)
def test_a_malformed_hash_is_refused_at_start(home: Path, token_hash: str, part: str) -> None:
    settings = TaskServerSettings(api_key_id=KEY_ID, api_token_hash=token_hash)
    with pytest.raises(KeyUnusable, match="BUTTERCUP_TASK_SERVER_API_TOKEN_HASH") as caught:
        resolve_key(settings)
    assert part in str(caught.value)
    assert not (home / CREDENTIALS).exists()


# --- the credentials file ----------------------------------------------------------------------


def test_without_a_key_one_is_made_and_kept(home: Path, redis_url: str) -> None:
    first = resolve_key(TaskServerSettings())

    path = home / CREDENTIALS
    assert (first.path, first.made, first.warning) == (path, True, None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    assert [entry.name for entry in home.iterdir()] == [CREDENTIALS]
    stored = dotenv_values(path)
    token = stored["BUTTERCUP_API_TOKEN"] or ""
    assert token not in repr(first)

    again = resolve_key(TaskServerSettings())
    assert (again.key, again.made) == (first.key, False)
    with TaskServer(redis_url, api_key_id=None, api_token_hash=None) as client:
        assert client.get("/status/").status == 401
        shown = basic(stored["BUTTERCUP_API_KEY_ID"] or "", token)
        assert client.get("/status/", authorization=shown).status == 200


def test_the_file_serves_as_an_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its lines may be copied into `.env`, or read by a shell."""
    made = resolve_key(TaskServerSettings())
    assert made.path is not None
    Path(".env").write_text(made.path.read_text())
    monkeypatch.setenv("BUTTERCUP_HOME", str(tmp_path / "elsewhere"))
    assert resolve_key(TaskServerSettings()).key == made.key
    assert not (tmp_path / "elsewhere").exists()
    shell = subprocess.run(
        ["sh", "-c", f'. "{made.path}"; printf %s "$BUTTERCUP_TASK_SERVER_API_TOKEN_HASH"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout == made.key.token_hash


def test_servers_that_start_at_once_share_one_key(home: Path) -> None:
    program = (
        "from task_api.auth import resolve_key; from task_api.settings import TaskServerSettings;"
        "input(); found = resolve_key(TaskServerSettings());"
        "print(found.key.key_id, found.key.token_hash, found.made)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    lines = [process.communicate(timeout=30)[0].split() for process in processes]
    assert len({(key_id, token_hash) for key_id, token_hash, _ in lines}) == 1
    assert [made for *_, made in lines].count("True") == 1
    assert [entry.name for entry in home.iterdir()] == [CREDENTIALS]


def test_a_file_that_others_can_read_is_warned_about(home: Path) -> None:
    path = resolve_key(TaskServerSettings()).path
    assert path is not None
    path.chmod(0o644)
    assert resolve_key(TaskServerSettings()).warning == (
        f"{path} can be read by other users (mode 0644); run: chmod 600 {path}"
    )


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "lacks BUTTERCUP_API_KEY_ID or BUTTERCUP_TASK_SERVER_API_TOKEN_HASH"),
        (b"\xff\xfe\x00", "it is not text"),
        (f"BUTTERCUP_API_KEY_ID='{KEY_ID}'\n".encode(), "lacks"),
        (
            f"BUTTERCUP_API_KEY_ID='x'\nBUTTERCUP_TASK_SERVER_API_TOKEN_HASH='{TOKEN_HASH}'".encode(),
            "is damaged ('x' is not a UUID",
        ),
        (
            f"BUTTERCUP_API_KEY_ID='{KEY_ID}'\nBUTTERCUP_TASK_SERVER_API_TOKEN_HASH='x'".encode(),
            "is damaged",
        ),
    ],
)
def test_a_damaged_file_is_told(home: Path, content: bytes, part: str) -> None:
    home.mkdir()
    (home / CREDENTIALS).write_bytes(content)
    with pytest.raises(KeyUnusable) as caught:
        resolve_key(TaskServerSettings())
    assert str(home / CREDENTIALS) in str(caught.value)
    assert part in str(caught.value)
    assert "remove" in str(caught.value)


def test_a_folder_in_the_place_of_the_file(home: Path) -> None:
    (home / CREDENTIALS).mkdir(parents=True)
    with pytest.raises(KeyUnusable, match="cannot be read"):
        resolve_key(TaskServerSettings())


def test_a_home_that_cannot_be_made(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(KeyUnusable, match="none can be written to") as caught:
        resolve_key(TaskServerSettings())
    assert "BUTTERCUP_TASK_SERVER_API_KEY_ID" in str(caught.value)


def test_a_home_that_may_not_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest's own folder is closed to other users.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        closed = Path(folder) / "home"
        closed.mkdir(mode=0o555)
        monkeypatch.setenv("BUTTERCUP_HOME", str(closed))
        with as_ordinary_user(), pytest.raises(KeyUnusable, match="make the folder writable"):
            resolve_key(TaskServerSettings())


def test_a_home_that_cannot_be_reached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        closed = Path(folder) / "closed"
        closed.mkdir(mode=0o700 if os.geteuid() == 0 else 0o000)
        monkeypatch.setenv("BUTTERCUP_HOME", str(closed / "home"))
        settings = TaskServerSettings()
        with as_ordinary_user(), pytest.raises(KeyUnusable) as caught:
            resolve_key(settings)
    assert str(caught.value) == (
        f"{closed}/home/credentials cannot be looked for: Permission denied; let the user who runs "
        "the server into the folders on the way, choose another home folder with BUTTERCUP_HOME, "
        "or set BUTTERCUP_TASK_SERVER_API_KEY_ID and BUTTERCUP_TASK_SERVER_API_TOKEN_HASH"
    )


def test_a_home_whose_links_lead_in_a_circle(home: Path) -> None:
    home.symlink_to(home)
    with pytest.raises(KeyUnusable, match="cannot be looked for: Too many levels of symbolic"):
        resolve_key(TaskServerSettings())


def test_a_file_that_may_not_be_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("BUTTERCUP_HOME", folder)
        path = resolve_key(TaskServerSettings()).path
        assert path is not None
        path.chmod(0o000)
        with as_ordinary_user(), pytest.raises(KeyUnusable) as caught:
            resolve_key(TaskServerSettings())
    assert str(caught.value) == (
        f"the key in {path} cannot be read: Permission denied; make the file readable for the user "
        "who runs the server, or remove it to get a new key"
    )
