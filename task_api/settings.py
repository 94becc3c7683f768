"""Settings: flags, then environment, then `.env`, in one way for every command.

Each component reads variables with its own prefix (`BUTTERCUP_TASK_SERVER_PORT`). Two settings are
shared, so that one line serves all components: `BUTTERCUP_REDIS_URL` and `BUTTERCUP_HOME`; the
component's own variable wins over the shared one.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from task_api.redis_url import check_redis_url
from task_api.task import normalize_uuid, split_url

SHARED_PREFIX = "BUTTERCUP_"
SHARED_FIELDS = ("redis_url", "home")

NEARLY = 0.85
"""How much a name has to be like a shared variable to be taken for it, misspelt; 1 is the same."""

LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


def _log_level(value: str) -> str:
    if value.lower() not in LOG_LEVELS:
        raise ValueError(f"choose one of {', '.join(LOG_LEVELS)}")
    return value.lower()


def absolute_path(value: Path) -> Path:
    """A folder in the settings, from / on.

    Raises:
        ValueError: it cannot be told where that is.
    """
    try:
        return value.expanduser().absolute()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            "the home folder of this user, or the current folder, is not known; "
            "name the folder from / on"
        ) from error


class _SharedEnvironment(EnvSettingsSource):
    """The variables that every component reads, under the prefix without a component's name."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, env_prefix=SHARED_PREFIX)

    def __call__(self) -> dict[str, Any]:
        return _shared_only(super().__call__())


class _SharedDotEnv(DotEnvSettingsSource):
    """The same, from `.env`."""

    def __init__(self, settings_cls: type[BaseSettings], env_file: Any) -> None:
        super().__init__(settings_cls, env_file=env_file, env_prefix=SHARED_PREFIX)

    def __call__(self) -> dict[str, Any]:
        return _shared_only(super().__call__())


def _shared_only(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in SHARED_FIELDS}


RedisUrl = Annotated[
    str, AfterValidator(check_redis_url), Field(description="Redis URL", repr=False)
]
LogLevel = Annotated[str, AfterValidator(_log_level), Field(description="Log level")]
Home = Annotated[
    Path,
    AfterValidator(absolute_path),
    Field(
        validate_default=True,
        description="Folder for tasks, archives, Dagster's data and the generated key",
    ),
]
DEFAULT_REDIS_URL = "redis://localhost:6379"
DEFAULT_HOME = Path("~/.buttercup")


class CommonSettings(BaseSettings):
    """How every component reads its settings; a component adds the fields."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        # An error may end up in a log, and a Redis URL holds a password.
        hide_input_in_errors=True,
        extra="ignore",
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        # Stands in `--help` as the default of what has none.
        cli_parse_none_str="not set",
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Take the source code's indentation out of the docstring, which `--help` prints."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.__doc__ = inspect.getdoc(cls)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add the shared variables behind the component's own ones."""
        env_file = getattr(dotenv_settings, "env_file", None)
        return (
            init_settings,
            env_settings,
            _SharedEnvironment(settings_cls),
            dotenv_settings,
            _SharedDotEnv(settings_cls, env_file),
            file_secret_settings,
        )

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """One sentence for each variable that no setting reads and that seems to be meant for one.

        Those with this component's prefix, and those that are nearly a shared one: a misspelt name
        would otherwise be ignored without a word.
        """
        prefix = str(cls.model_config.get("env_prefix", ""))
        known = {f"{prefix}{name}".upper() for name in cls.model_fields}
        names = {name.upper() for name in os.environ}
        env_file = cls.model_config.get("env_file")
        if isinstance(env_file, str) and Path(env_file).is_file():
            names |= {name.upper() for name in dotenv_values(env_file)}
        sentences = []
        for name in sorted(name for name in names if name.startswith(prefix) and name not in known):
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"; did you mean {near[0]}?" if near else ""
            sentences.append(f"{name} is not a setting and is ignored{advice}")
        shared = {f"{SHARED_PREFIX}{name}".upper() for name in SHARED_FIELDS}
        for name in sorted(names - shared - known):
            near = difflib.get_close_matches(name, shared, n=1, cutoff=NEARLY)
            if near and not name.startswith(prefix):
                sentences.append(f"{name} is not a setting and is ignored; did you mean {near[0]}?")
        return sentences


class TaskServerSettings(CommonSettings):
    """The HTTP server that accepts analysis tasks and records them in Redis."""

    model_config = SettingsConfigDict(
        env_prefix="BUTTERCUP_TASK_SERVER_", cli_prog_name="buttercup-task-server"
    )

    # The six documented options come first, so that `--help` begins with them.
    redis_url: RedisUrl = DEFAULT_REDIS_URL
    log_level: LogLevel = "info"
    host: str = Field(default="127.0.0.1", description="Host")
    port: int = Field(default=8000, ge=0, le=65535, description="Port")
    reload: bool = Field(default=False, description="Reload source code on change")
    workers: int = Field(default=1, ge=1, le=256, description="Number of workers")

    home: Home = DEFAULT_HOME
    api_key_id: str | None = Field(
        default=None,
        description="Id of the key that senders use, a UUID; a key is made without one",
    )
    api_token_hash: str | None = Field(
        default=None,
        repr=False,
        description="Argon2id hash of that key's token; put it in single quotes",
    )
    max_body_bytes: int = Field(
        default=32 * 1024 * 1024, ge=1024, description="Largest request body accepted, in bytes"
    )
    sensor_timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        description="The intake sensor counts as gone when it was not seen for this long",
    )
    competition_api_url: str | None = Field(
        default=None, description="Competition API; pinged in the background if set"
    )
    competition_api_key_id: str | None = Field(
        default=None, description="Id of the key for the competition API"
    )
    competition_api_key_token: str | None = Field(
        default=None,
        repr=False,
        description="Token of that key; better set in the environment than on the command line",
    )
    competition_api_ping_seconds: float = Field(
        default=30.0, ge=0.1, description="Pause between two pings of the competition API, seconds"
    )

    @field_validator("api_key_id")
    @classmethod
    def _key_id_is_a_uuid(cls, value: str | None) -> str | None:
        return None if value is None else normalize_uuid(value)

    @field_validator("competition_api_url")
    @classmethod
    def _competition_api_is_http(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = split_url(value)
        if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("send a URL that begins with http:// or https://")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "name only scheme, host, port and path; the key has settings of its own"
            )
        return value.rstrip("/")

    @model_validator(mode="after")
    def _settings_that_belong_together(self) -> Self:
        _all_or_none(self, "api_key_id", "api_token_hash")
        _all_or_none(
            self, "competition_api_url", "competition_api_key_id", "competition_api_key_token"
        )
        return self


def _all_or_none(settings: BaseSettings, *names: str) -> None:
    prefix = str(settings.model_config.get("env_prefix", ""))
    missing = [f"{prefix}{name}".upper() for name in names if getattr(settings, name) is None]
    if missing and len(missing) < len(names):
        given = [f"{prefix}{name}".upper() for name in names if getattr(settings, name) is not None]
        raise ValueError(
            f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} set, but not "
            f"{' and '.join(missing)}; set all of them or none"
        )
