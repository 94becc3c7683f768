"""What settings and Redis URLs show of a secret: nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from task_api.cli import main
from task_api.redis_client import safe_redis_url
from task_api.settings import TaskServerSettings

BEGINS = (
    "a Redis URL begins with redis://, rediss:// or unix://, such as redis://localhost:6379 or "
    "redis://:password@host:6379/0"
)
ESCAPE = (
    "the Redis URL cannot be read; escape / in the password as %2F, ? as %3F, # as %23 and @ as "
    "%40, and give the port as a number, such as redis://localhost:6379 or "
    "redis://:password@host:6379/0"
)
DATABASE = (
    "only the number of a database may follow the host in a Redis URL, such as "
    "redis://localhost:6379 or redis://:password@host:6379/0"
)
SOCKET = "name the socket of Redis with three slashes, such as unix:///run/redis/redis.sock"
SECRETS = ("pa55", "w0rd", "s3cret")

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("rediss//:s3cret@host", BEGINS),
        (":s3cret@host:6379", BEGINS),
        ("REDIS://:s3cret@host", BEGINS),
        (" redis://:s3cret@host", BEGINS),
        ("redis://:pa55/w0rd@host", ESCAPE),
        ("redis://:pa55?w0rd@host", ESCAPE),
        ("redis://:pa55#w0rd@host", ESCAPE),
        ("redis://:12/w0rd@host:6379", ESCAPE),
        ("redis://user:12/s3cret@host:6379", ESCAPE),
        ("redis://user:12?s3cret@host:6379", ESCAPE),
        ("redis://user:12#s3cret@host:6379", ESCAPE),
        ("redis://host/0#s3cret", ESCAPE),
        ("redis://host?password=s3cret@1", ESCAPE),
        ("redis://:pa55\u2100w0rd@host", ESCAPE),
        ("redis://[s3cret]:1", ESCAPE),
        ("redis://host:s3cret", ESCAPE),
        ("redis://user:12/s3cret", DATABASE),
        ("redis://host/database", DATABASE),
        ("unix://:pa55/w0rd@/run/redis.sock", ESCAPE),
        ("unix://run/redis.sock", SOCKET),
        ("unix://:12/s3cret", SOCKET),
    ],
)
def test_an_unusable_redis_url_shows_no_part_of_its_password(
    url: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [safe_redis_url(url)]
    assert shown == ["<unreadable Redis URL>"]
    with monkeypatch.context() as patch:
        patch.setenv("BUTTERCUP_REDIS_URL", url)
        with pytest.raises(ValidationError) as caught:
            TaskServerSettings()
        shown += [str(caught.value), repr(caught.value)]
        with pytest.raises(SystemExit):
            main([])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"buttercup-task-server: BUTTERCUP_REDIS_URL: {text}"
    Path(".env").write_text(f"BUTTERCUP_REDIS_URL='{url}'\n")
    with pytest.raises(SystemExit):
        main([])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"buttercup-task-server: BUTTERCUP_REDIS_URL in .env: {text}"
    assert not [secret for secret in SECRETS if secret in "".join([*shown, line])]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379", "redis://localhost:6379"),
        ("redis://user:s3cret@host:6379/3", "redis://host:6379/3"),
        ("redis://:pa55%2Fw0rd@host", "redis://host"),
        ("redis://:pa55@w0rd@host/", "redis://host/"),
        ("rediss://host/0?password=s3cret", "rediss://host/0"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis:///2", "redis:///2"),
        ("unix:///run/redis.sock?db=1&password=s3cret", "unix:///run/redis.sock"),
        ("unix://user:s3cret@/run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_of_a_redis_url_only_the_harmless_parts_are_shown(url: str, shown: str) -> None:
    assert TaskServerSettings(redis_url=url).redis_url == url
    assert safe_redis_url(url) == shown


def test_settings_that_do_not_belong_together_show_no_secret() -> None:
    with pytest.raises(ValidationError) as caught:
        TaskServerSettings(
            redis_url="redis://:pa55@host",
            competition_api_key_id="id",
            competition_api_key_token="s3cret",
        )
    assert "COMPETITION_API_URL; set all of them or none" in str(caught.value)
    assert not [secret for secret in SECRETS if secret in str(caught.value)]


def test_settings_themselves_show_no_secret() -> None:
    made = TaskServerSettings(
        redis_url="redis://:pa55@host",
        competition_api_url="http://x",
        competition_api_key_id="id",
        competition_api_key_token="s3cret",
    )
    assert not [secret for secret in SECRETS if secret in repr(made)]


def test_a_home_of_nobody_gives_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUTTERCUP_HOME", "~no-such-user/buttercup")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "buttercup-task-server: BUTTERCUP_HOME: the home folder of this user, or the current "
        "folder, is not known; name the folder from / on\n"
    )
