"""`buttercup`: everything on one machine, and what a person does with it.

Each subcommand has a module of its own, imported when it is called.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, Field
from pydantic_settings import CliPositionalArg, CliSubCommand, SettingsConfigDict

from buttercup_dagster.cli.arguments import load
from buttercup_dagster.settings import LocalSettings
from task_api.client import is_server_url
from task_api.redis_url import check_redis_url
from task_api.settings import DEFAULT_HOME, Home
from task_api.task import normalize_uuid, printable

PROGRAM: Final = "buttercup"
DEFAULT_URL: Final = "http://127.0.0.1:8000"
DEFAULT_DAGSTER_PORT: Final = 3000
OTHER_PREFIXES: Final = ("BUTTERCUP_TASK_SERVER_", "BUTTERCUP_DOWNLOADER_", "BUTTERCUP_REGISTRY_")

Port = Annotated[int, Field(ge=1, le=65535)]

_UNITS: Final = {"m": 60, "h": 3_600, "d": 86_400}


def _seconds(text: str) -> int:
    """`90m`, `8h` or `2d` in seconds."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.isdecimal() or not 0 < int(number) < 1_000_000:
        raise ValueError(f"{printable(text)!r} is no span of time; give one such as 90m, 8h or 2d")
    return int(number) * _UNITS[unit]


def _span(text: str) -> str:
    _seconds(text)
    return text


def _server(url: str) -> str:
    if not is_server_url(url):
        raise ValueError(
            f"give the URL of a task server, such as {DEFAULT_URL}; the key has options of its own"
        )
    return url


def _redis(url: str | None) -> str | None:
    return None if url is None else check_redis_url(url)


def _uuid(text: str | None) -> str | None:
    return None if text is None else normalize_uuid(text)


class Subcommand(BaseModel):
    """A subcommand; its docstring is what `--help` prints, without the code's indentation."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Take that indentation out."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.__doc__ = inspect.getdoc(cls)


class Up(Subcommand):
    """Run everything on this machine, until Ctrl-C.

    --home may stand before or after the command. Exit status: 0 after Ctrl-C; 1 a
    process does not come up; 2 this machine or a setting has to be changed first.
    """

    port: Port | None = Field(
        default=None,
        description="port of the task server; BUTTERCUP_TASK_SERVER_PORT without one",
    )
    dagster_port: Port = Field(default=DEFAULT_DAGSTER_PORT, description="port of Dagster's pages")
    redis_url: Annotated[str | None, AfterValidator(_redis)] = Field(
        default=None,
        repr=False,
        description="Redis to use; BUTTERCUP_REDIS_URL without one, else one is started",
    )


class Demo(Subcommand):
    """Prepare a first task from real code, show it, and end."""


class Submit(Subcommand):
    """Pack a folder or git repository into a task, post it, and wait for its end.

    Exit status: 0 the task is ready; 1 it is not; 2 wrong usage; 130 stopped by
    Ctrl-C.
    """

    path: CliPositionalArg[Path] = Field(description="folder or git repository")
    project_name: str = Field(description="OSS-Fuzz project name")
    fuzz_tooling: Path | None = Field(
        default=None, description="folder with the OSS-Fuzz tooling (infra/, projects/)"
    )
    base: str | None = Field(
        default=None,
        description="commit to compare with: makes a delta task from it to HEAD",
    )
    focus: str | None = Field(
        default=None, description="name of the top folder in the task; that of the path without one"
    )
    deadline: Annotated[str, AfterValidator(_span)] = Field(
        default="8h", description="how long the task may take, such as 90m, 8h or 2d"
    )
    task_id: Annotated[str | None, AfterValidator(_uuid)] = Field(
        default=None, description="id of the task, a UUID; a new one without it"
    )

    @property
    def deadline_seconds(self) -> int:
        """The span of time until the deadline."""
        return _seconds(self.deadline)


class NewKey(Subcommand):
    """Make a key: its id, its token, and the hash that the task server is given.

    Nothing is stored; append the output to `.env`, for example.
    """


class ShowKey(Subcommand):
    """Show the key in the home folder."""


class Auth(Subcommand):
    """Make or show the key with which tasks are posted."""

    new: CliSubCommand[NewKey] = Field(description="make a key and print it")
    show: CliSubCommand[ShowKey] = Field(description="show the key in the home folder")


class Commands(LocalSettings):
    """Run the orchestrator on this machine and give it tasks."""

    model_config = SettingsConfigDict(env_prefix="BUTTERCUP_", cli_prog_name=PROGRAM)

    home: Home = DEFAULT_HOME
    url: Annotated[str, AfterValidator(_server)] = Field(
        default=DEFAULT_URL, description="URL of the task server"
    )
    api_key_id: Annotated[str | None, AfterValidator(_uuid)] = Field(
        default=None, description="Id of the key to post with; the home folder's without one"
    )
    api_token: str | None = Field(
        default=None, repr=False, description="Token of that key; better set in the environment"
    )
    up: CliSubCommand[Up] = Field(description="run everything on this machine, until Ctrl-C")
    demo: CliSubCommand[Demo] = Field(description="prepare a first task, show it, and end")
    submit: CliSubCommand[Submit] = Field(description="pack and post a folder or git repository")
    auth: CliSubCommand[Auth] = Field(description="make or show the key")

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """Those of this command's own; the components speak about theirs."""
        return [
            sentence
            for sentence in super().unknown_variables()
            if not sentence.startswith((*OTHER_PREFIXES, "BUTTERCUP_REDIS_URL"))
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The status of the subcommand.

    Raises:
        SystemExit: status 1 or 2 after one line on standard error; 0 after `--help`.
    """
    settings, command = load(
        Commands,
        sys.argv[1:] if argv is None else argv,
        anywhere=[f"--{name}=" for name in ("home", "url", "api_key_id", "api_token")],
    )
    module = importlib.import_module(f"buttercup_dagster.cli.{type(command).__name__.lower()}")
    status: int = module.run(settings, command)
    return status


if __name__ == "__main__":
    sys.exit(main())
