"""Settings of the downloader, of the registry's command, and of `buttercup`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from task_api.settings import (
    DEFAULT_HOME,
    DEFAULT_REDIS_URL,
    SHARED_PREFIX,
    CommonSettings,
    Home,
    LogLevel,
    RedisUrl,
    absolute_path,
)

GIBIBYTE = 1024**3

UP_FILE = "up.env"
"""File in the home folder in which other commands find what `buttercup up` started."""


def _absolute(value: Path | None) -> Path | None:
    return None if value is None else absolute_path(value)


Folder = Annotated[Path | None, AfterValidator(_absolute)]


class DownloaderSettings(CommonSettings):
    """What fetches, verifies and unpacks the sources of tasks."""

    model_config = SettingsConfigDict(
        env_prefix="BUTTERCUP_DOWNLOADER_", cli_prog_name="buttercup-downloader"
    )

    redis_url: RedisUrl = DEFAULT_REDIS_URL
    log_level: LogLevel = "info"
    home: Home = DEFAULT_HOME
    tasks_dir: Folder = Field(
        default=None,
        description="Folder of the prepared tasks, outside of any git work tree; without one "
        "tasks/ in the home folder",
    )
    store_dir: Folder = Field(
        default=None,
        description="Folder of archives and unpacked trees, on the same disk; without one store/ "
        "in the home folder",
    )
    machine: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        description="Name under which consumers find this machine",
    )
    max_runs: int = Field(
        default=2, ge=1, le=256, description="How many tasks are prepared at the same time"
    )
    linger_seconds: float = Field(
        default=6.0,
        ge=0,
        le=60,
        description="How long a warm worker waits for another task after a run, seconds",
    )
    drain_seconds: float = Field(
        default=30.0,
        ge=0,
        description="How long runs may go on after SIGTERM before they are interrupted, seconds",
    )
    runs_per_process: int = Field(
        default=500, ge=1, description="Replace a process of the worker after so many runs"
    )
    process_bytes: int = Field(
        default=GIBIBYTE,
        ge=256 * 1024**2,
        description="Replace it also when it has held more memory",
    )
    max_archive_bytes: int = Field(
        default=8 * GIBIBYTE, ge=1, description="Refuse a larger archive"
    )
    max_downloads_per_host: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Fetch so many archives at once from one host, over all workers that share "
        "a store",
    )
    max_downloads: int = Field(
        default=16, ge=1, le=1024, description="Fetch so many archives at once in all"
    )
    max_tree_bytes: int = Field(
        default=64 * GIBIBYTE, ge=1, description="Refuse an archive that unpacks to more"
    )
    max_tree_entries: int = Field(
        default=2_000_000, ge=1, description="Refuse an archive with more entries"
    )
    source_hosts: str | None = Field(
        default=None,
        description="Fetch from these hosts only, comma-separated; '*.example.org' for all below",
    )
    block_private_addresses: bool = Field(
        default=False, description="Fetch from public addresses only"
    )
    file_roots: str | None = Field(
        default=None,
        description="Folders, comma-separated, below which file:// sources of posted tasks may "
        "lie; without one there are no such sources",
    )
    escaping_links: Literal["drop", "refuse"] = Field(
        default="drop",
        description="Leave out symbolic links that lead out of an archive's tree, or refuse the "
        "archive",
    )
    link_mode: Literal["auto", "clone", "hardlink", "copy"] = Field(
        default="auto",
        description="How the files of a task are made of the stored tree; clone or copy where "
        "consumers write to them",
    )
    max_store_bytes: int = Field(
        default=64 * GIBIBYTE, ge=0, description="Remove what no task needs from a larger store"
    )
    min_free_bytes: int = Field(
        default=2 * GIBIBYTE, ge=0, description="Remove it also where the disk has less space left"
    )

    retention_days: float = Field(
        default=7.0,
        ge=0,
        le=36_500,
        description="Keep the records and folders of tasks, and their runs, so long after their "
        "end",
    )

    @property
    def allowed_hosts(self) -> tuple[str, ...]:
        """Patterns of the only hosts to fetch from; empty if all are allowed."""
        return tuple(name.strip() for name in (self.source_hosts or "").split(",") if name.strip())

    @property
    def allowed_file_roots(self) -> tuple[Path, ...]:
        """Folders below which the file:// sources of posted tasks may lie."""
        names = (name.strip() for name in (self.file_roots or "").split(","))
        return tuple(absolute_path(Path(name)) for name in names if name)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process that reads the settings anew finds these."""
        prefix = str(DownloaderSettings.model_config.get("env_prefix", ""))
        return {
            f"{prefix}{name}".upper(): str(value)
            for name in DownloaderSettings.model_fields
            if (value := getattr(self, name)) is not None
        }

    @property
    def tasks(self) -> Path:
        """Folder of the prepared tasks."""
        return self.tasks_dir or self.home / "tasks"

    @property
    def store(self) -> Path:
        """Folder of archives and unpacked trees."""
        return self.store_dir or self.home / "store"


class _RunningUp(PydanticBaseSettingsSource):
    """What `buttercup up` wrote into the home folder while it runs; all else wins over it."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not asked: the whole file is read at once."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """The settings in the file, or none where nothing runs."""
        try:
            home = absolute_path(Path(self.current_state.get("home") or DEFAULT_HOME))
            found = dotenv_values(home / UP_FILE, interpolate=False)
        except (OSError, ValueError):
            return {}
        return {
            name: value
            for name in self.settings_cls.model_fields
            if (value := found.get(f"{SHARED_PREFIX}{name}".upper()))
        }


class LocalSettings(CommonSettings):
    """Settings of commands that find a running `buttercup up` by its home folder."""

    home: Home = DEFAULT_HOME

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *args: Any, **kwargs: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add what runs behind everything else."""
        sources = super().settings_customise_sources(settings_cls, *args, **kwargs)
        return (*sources, _RunningUp(settings_cls))


class RegistrySettings(LocalSettings):
    """The command that shows and steers the tasks in Redis."""

    model_config = SettingsConfigDict(
        env_prefix="BUTTERCUP_REGISTRY_", cli_prog_name="buttercup-registry"
    )

    redis_url: RedisUrl = DEFAULT_REDIS_URL
    home: Home = DEFAULT_HOME
