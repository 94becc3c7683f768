"""Reads JSON bodies strictly, and says what is wrong with one in words for its sender.

No message repeats what was sent beyond the name of a field: a URL's query is a credential.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from task_api.task import Problem, TaskInvalid

MAX_PROBLEMS: Final = 50
"""So many problems are listed; a sender mends the first ones first."""

MAX_EXACT_FLOAT: Final = 2**53

_UUID: Final = "a UUID such as 123e4567-e89b-42d3-a456-426614174000"
_MILLISECONDS: Final = "UNIX milliseconds as a whole number, such as 1767225600000"

EXPECTED: Final[Mapping[str, str]] = {
    "message_id": _UUID,
    "task_id": _UUID,
    "sarif_id": _UUID,
    "after": f"the id of the last task of the page before: {_UUID}",
    "message_time": _MILLISECONDS,
    "deadline": _MILLISECONDS,
    "tasks": "a list of tasks",
    "source": "a list of sources",
    "broadcasts": "a list of SARIF broadcasts",
    "sha256": "a string of 64 hex digits",
    "url": "a string, the URL of the tarball",
    "focus": "a string, the folder inside the repo tarball",
    "project_name": "a string, the project's name in OSS-Fuzz",
    "harnesses_included": "true or false",
    "metadata": "a JSON object; {} if there is nothing in it",
    "sarif": "a SARIF report, a JSON object",
    "state": "'waiting', 'succeeded', 'failed' or 'errored'",
    "reason": "a string of at most 2000 characters",
    "limit": "a whole number from 1 to 500",
}
"""What each field of a body or a query must be, to follow "must be"."""

_Model = TypeVar("_Model", bound=BaseModel)


def parse_json(body: bytes) -> Any:
    """The value that a JSON text describes, by RFC 8259: no NaN, no Infinity, UTF-8.

    Raises:
        TaskInvalid: it is not JSON, or holds a number that no double can hold.
    """
    if not body.strip():
        raise _bad_body("is empty; send a JSON object")
    try:
        return json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_float)
    except UnicodeDecodeError as error:
        raise _bad_body("is not UTF-8; send JSON in UTF-8") from error
    except json.JSONDecodeError as error:
        raise _bad_body(
            f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise _bad_body("is nested too deeply") from error
    except ValueError as error:  # Python's limit on the digits of a whole number
        raise _bad_body("holds a number with too many digits") from error


def validated(model: type[_Model], data: Any) -> _Model:
    """The data as a model of the wire.

    Raises:
        TaskInvalid: they do not fit; with the path of each wrong field.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise TaskInvalid(problems_from(error.errors(include_url=False))) from error


def whole_numbers(data: Any) -> Any:
    """The data with times such as 1.7e12 as the whole numbers that they are.

    JSON knows one kind of number (RFC 8259, section 6), and some encoders write large ones so.
    """
    if isinstance(data, dict):
        for name in ("message_time", "deadline"):
            value = data.get(name)
            if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_FLOAT:
                data[name] = int(value)
        tasks = data.get("tasks")
        for task in tasks if isinstance(tasks, list) else ():
            whole_numbers(task)
    return data


def problems_from(errors: Iterable[Any]) -> list[Problem]:
    """One problem for each of pydantic's errors.

    Args:
        errors: what `ValidationError.errors()` gives.
    """
    return [Problem(tuple(error["loc"]) or ("body",), _text(error)) for error in errors]


def problem_list(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """The form in which an answer lists problems: `[{"path": …, "message": …}]`.

    Of more than `MAX_PROBLEMS` only the first ones are listed, and a line says so.
    """
    rows = []
    for problem in problems[:MAX_PROBLEMS]:
        text = str(problem)
        path = text[: len(text) - len(problem.text)].removesuffix(": ")
        rows.append({"path": path, "message": problem.text})
    if len(problems) > MAX_PROBLEMS:
        rows.append(
            {"path": "body", "message": f"has {len(problems) - MAX_PROBLEMS} more problems"}
        )
    return rows


def _no_constant(name: str) -> NoReturn:
    raise _bad_body(f"holds {name}, which is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _bad_body("holds a number that is too large for a double")
    return value


def _bad_body(text: str) -> TaskInvalid:
    return TaskInvalid([Problem(("body",), text)])


def _text(error: Mapping[str, Any]) -> str:
    location = error["loc"]
    name = location[-1] if location else ""
    expected = error.get("ctx", {}).get("expected")
    if name == "type":
        expected = (
            "'repo', 'fuzz-tooling' or 'diff'" if "source" in location else "'full' or 'delta'"
        )
    expected = expected or EXPECTED.get(str(name), "a JSON object")
    if error["type"] == "missing":
        return f"is missing; send {expected}"
    return f"must be {expected}"
