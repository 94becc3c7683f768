"""Reads a command's settings; a wrong one gives one clear line on standard error and status 2."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import ValidationError
from pydantic_settings import SettingsError

from task_api.settings import SHARED_FIELDS, SHARED_PREFIX, CommonSettings

USAGE_STATUS = 2

_Settings = TypeVar("_Settings", bound=CommonSettings)


def load_settings(settings_class: type[_Settings], argv: Sequence[str]) -> _Settings:
    """The settings from flags, environment and `.env`.

    Unknown variables with the component's prefix are warned about.

    Args:
        settings_class: the component's settings.
        argv: the arguments, without the program's name.

    Raises:
        SystemExit: status 2 after one line for each wrong setting; 0 after `--help`.
    """
    program = str(settings_class.model_config.get("cli_prog_name"))
    # What it says of a line that it cannot read is said below, once and with the file's name.
    logging.getLogger("dotenv.main").setLevel(logging.ERROR)
    try:
        settings = settings_class(_cli_parse_args=list(argv), _cli_exit_on_error=False)
    except ValidationError as error:
        lines = [_sentence(settings_class, argv, one) for one in error.errors()]
        fail(program, *lines)
    except SettingsError as error:
        text = str(error).removeprefix("error parsing CLI: ").removeprefix("argument ")
        fail(program, f"{text}; see {program} --help")
    except (OSError, UnicodeDecodeError) as error:
        fail(program, f"{settings_class.model_config.get('env_file')} cannot be read: {error}")
    for sentence in settings_class.unknown_variables():
        warn(program, sentence)
    for sentence in _unreadable_lines(settings_class):
        warn(program, sentence)
    return settings


def _unreadable_lines(settings_class: type[CommonSettings]) -> Iterator[str]:
    """One sentence for each line of `.env` that is no setting and is passed over."""
    file = Path(str(settings_class.model_config.get("env_file")))
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as stream:
        for binding in parse_stream(stream):
            if binding.error:
                yield f"{file}, line {binding.original.line}: not NAME=VALUE, and ignored"


def warn(program: str, text: str) -> None:
    """Write a warning to standard error."""
    sys.stderr.write(f"{program}: warning: {text}\n")


def fail(program: str, *lines: str) -> NoReturn:
    """Write what is wrong to standard error, one line each.

    Raises:
        SystemExit: status 2.
    """
    for line in lines:
        sys.stderr.write(f"{program}: {' '.join(line.split())}\n")
    raise SystemExit(USAGE_STATUS)


def _sentence(settings_class: type[CommonSettings], argv: Sequence[str], error: Any) -> str:
    text = str(error["msg"]).partition(", unable to ")[0]
    if text.startswith("Value error, "):
        text = text.removeprefix("Value error, ")
    elif text.startswith("Input should be "):
        text = f"must be {text.removeprefix('Input should be ')}"
    if not error["loc"]:
        return text
    return f"{_where(settings_class, argv, str(error['loc'][0]))}: {text}"


def _where(settings_class: type[CommonSettings], argv: Sequence[str], name: str) -> str:
    """The flag or the variable from which a setting came."""
    flags = {f"--{name}", f"--no-{name}"}
    if any(argument.partition("=")[0] in flags for argument in argv):
        return f"--{name}"
    own = f"{settings_class.model_config.get('env_prefix', '')}{name}".upper()
    shared = f"{SHARED_PREFIX}{name}".upper() if name in SHARED_FIELDS else own
    environment = {key.upper(): value for key, value in os.environ.items()}
    file = str(settings_class.model_config.get("env_file"))
    in_file = (
        {key.upper(): value for key, value in dotenv_values(file).items()}
        if Path(file).is_file()
        else {}
    )
    # In the order in which settings are looked for.
    for variable in (own, shared):
        if environment.get(variable):
            return variable
    for variable in (own, shared):
        if in_file.get(variable):
            return f"{variable} in {file}"
    return f"--{name}"
