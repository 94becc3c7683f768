"""Reads a command's subcommand and flags; what is wrong with them is told in one line each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError, get_subcommand

from buttercup_dagster.cli.console import harmless
from task_api.command_line import fail, load_settings
from task_api.settings import CommonSettings
from task_api.task import normalize_uuid, printable

__all__ = ["fail", "flags_of", "load", "task_id_of"]

_QUERY: Final = re.compile(r"\?[^\s'\"]+")

_Settings = TypeVar("_Settings", bound=CommonSettings)


def flags_of(settings_class: type[CommonSettings]) -> list[str]:
    """The flags of these settings; one that takes a value ends in "="."""
    flags = []
    for name, field in settings_class.model_fields.items():
        flags += [f"--{name}", f"--no-{name}"] if field.annotation is bool else [f"--{name}="]
    return flags


def load(
    settings_class: type[_Settings], argv: Sequence[str], *, anywhere: Sequence[str] = ()
) -> tuple[_Settings, BaseModel]:
    """The settings and the subcommand that was asked for.

    Args:
        settings_class: has the subcommands as fields.
        argv: the arguments, without the program's name.
        anywhere: flags of the command itself that may also follow the subcommand; one that takes
            a value ends in "=".

    Raises:
        SystemExit: status 2 after one line for each wrong argument; 0 after `--help`.
    """
    program = str(settings_class.model_config.get("cli_prog_name"))
    front, rest = _split(program, argv, anywhere)
    names = _subcommands(settings_class)
    try:
        settings_class(_cli_parse_args=[*front, *rest], _cli_exit_on_error=False)
    except ValidationError as error:
        nested = [_sentence(one) for one in error.errors() if len(one["loc"]) > 1]
        if nested:
            with contextlib.suppress(SystemExit):
                load_settings(settings_class, front)  # tells what else is wrong
            fail(program, *nested)
    except SettingsError as error:
        text = str(error).removeprefix("error parsing CLI: ").removeprefix("argument ")
        if text.startswith("{"):
            text = text.partition("}: ")[2]  # names all commands, and once more behind it
        chosen = [name for name in names if name in rest][:1]
        help_call = " ".join([program, *chosen, "--help"])
        # A URL may stand where it does not belong, and its query is a credential.
        fail(program, f"{harmless(_QUERY.sub('?…', text))}; see {help_call}")
    except (OSError, UnicodeDecodeError):
        pass  # `.env` cannot be read; told about below
    settings = load_settings(settings_class, [*front, *rest])
    command = get_subcommand(settings, is_required=False, cli_exit_on_error=False)
    if not isinstance(command, BaseModel):
        fail(program, f"say what to do: {', '.join(names)}; see {program} --help")
    return settings, command


def _subcommands(settings_class: type[BaseModel]) -> list[str]:
    return [
        name
        for name, field in settings_class.model_fields.items()
        if any(getattr(one, "__name__", "") == "_CliSubCommand" for one in field.metadata)
    ]


def _split(
    program: str, argv: Sequence[str], anywhere: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The flags of the command itself, which the parser expects in front, and all the rest."""
    front: list[str] = []
    rest: list[str] = []
    left = list(argv)
    while left:
        argument = left.pop(0)
        if argument == "--":
            rest += [argument, *left]
            break
        name, equals, _ = argument.partition("=")
        if argument in anywhere or (equals and f"{name}=" in anywhere):
            front.append(argument)
        elif f"{argument}=" in anywhere:
            if not left:
                fail(program, f"{argument} needs a value; see {program} --help")
            front += [argument, left.pop(0)]
        else:
            rest.append(argument)
    return front, rest


def _sentence(error: Any) -> str:
    flag = f"--{error['loc'][-1]}"
    text = str(error["msg"]).partition(", unable to ")[0].removeprefix("Value error, ")
    if text == "Field required":
        return f"{flag} is missing"
    if text.startswith("Input should be "):
        wanted = text.removeprefix("Input should be ")
        return f"{flag} must be {wanted}, not {printable(str(error['input']))!r}"
    return f"{flag}: {text}"


def task_id_of(program: str, text: str) -> str:
    """A task id as it is stored.

    Raises:
        SystemExit: status 2; it is no UUID.
    """
    try:
        return normalize_uuid(text)
    except ValueError as error:
        fail(program, str(error))
