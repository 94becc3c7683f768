"""Reads JSON bodies strictly, and says what is wrong with one in words for its sender.

No message repeats what was sent beyond the name of a field: a URL's query is a credential.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from task_api.task import Problem, TaskInvalid, printable

MAX_PROBLEMS: Final = 50
"""So many problems are listed; a sender mends the first ones first."""

MAX_LEVELS: Final = 100
"""So deep may the value of a field be nested; writers of JSON recurse, and end at some 900."""

MAX_TASKS: Final = 1000
"""Tasks in one message; they are stored in one step, during which Redis does nothing else."""

MAX_SOURCES: Final = 16
"""Sources of one task. One of each type is right; of somewhat more, each wrong one is named."""

MAX_BROADCASTS: Final = 1000
"""SARIF reports in one message; each is stored in a step of its own."""

MAX_EXACT_FLOAT: Final = 2**53

_TOO_DEEP: Final = f"is nested more than {MAX_LEVELS} levels deep; send a flatter value"

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
        TaskInvalid: it is not JSON, holds a number that no double can hold, or is nested more
            than `MAX_LEVELS` deep in one of its fields.
    """
    if not body.strip():
        raise _bad_body("is empty; send a JSON object")
    try:
        data = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_float)
    except UnicodeDecodeError as error:
        raise _bad_body("is not UTF-8; send JSON in UTF-8") from error
    except json.JSONDecodeError as error:
        raise _bad_body(
            f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise _bad_body(_TOO_DEEP) from error
    except ValueError as error:  # Python's limit on the digits of a whole number
        raise _bad_body("holds a number with too many digits; send a smaller one") from error
    _check_levels(data)
    return data


def bounded(data: Any) -> Any:
    """The data, if no list in them is longer than a message needs.

    Checked before each entry is: a wrong entry costs a message, and a body has room for millions.

    Raises:
        TaskInvalid: with the path of each list that is too long.
    """
    if not isinstance(data, dict):
        return data
    tasks = _list(data, "tasks")
    found = []
    for name, limit in (("tasks", MAX_TASKS), ("broadcasts", MAX_BROADCASTS)):
        if (size := len(_list(data, name))) > limit:
            found.append(
                Problem((name,), f"holds {size} {name}; send {limit} at most in one message")
            )
    for number, task in enumerate(tasks[:MAX_TASKS]):
        if (size := len(_list(task, "source"))) > MAX_SOURCES:
            found.append(
                Problem(
                    ("tasks", number, "source"),
                    f"holds {size} sources; send one of each type at most",
                )
            )
    if found:
        raise TaskInvalid(found)
    return data


def validated(model: type[_Model], data: Any) -> _Model:
    """The data as a model of the wire.

    Raises:
        TaskInvalid: they do not fit; with the path of each wrong field.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise TaskInvalid(
            problems_from(error.errors(include_url=False, include_input=False))
        ) from error


def whole_numbers(data: Any) -> Any:
    """The data with times such as 1.7e12 as the whole numbers that they are.

    JSON knows one kind of number (RFC 8259, section 6), and some encoders write large ones so.
    """
    if isinstance(data, dict):
        for name in ("message_time", "deadline"):
            value = data.get(name)
            if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_FLOAT:
                data[name] = int(value)
        for task in _list(data, "tasks"):
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
        more = len(problems) - MAX_PROBLEMS
        rows.append(
            {
                "path": "body",
                "message": f"has {more} more {'problem' if more == 1 else 'problems'}, which are "
                "not listed; mend these first",
            }
        )
    return rows


def _no_constant(name: str) -> NoReturn:
    raise _bad_body(f"holds {name}, which is not JSON; send a number, or null for none")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _bad_body("holds a number that is too large for a double; send one below 1.8e308")
    return value


def _bad_body(text: str) -> TaskInvalid:
    return TaskInvalid([Problem(("body",), text)])


def _check_levels(data: Any) -> None:
    # Seldom does anything come near the limit: only then is each field looked at.
    if not _deeper(data, MAX_LEVELS):
        return
    found = [Problem(path, _TOO_DEEP) for path, value in _fields(data) if _deeper(value)]
    if found:
        raise TaskInvalid(found)


def _deeper(data: Any, levels: int = MAX_LEVELS) -> bool:
    """Whether objects and lists are nested deeper than that; level by level, without recursion."""
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(levels):
        if not level:
            return False
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)


def _fields(data: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The fields of a message and of what it lists, each with its path; together all of it."""
    if not isinstance(data, dict):
        yield ("body",), data
        return
    for name, value in data.items():
        shown = printable(name)
        if not isinstance(value, list):
            yield (shown,), value
            continue
        for number, entry in enumerate(value):
            if isinstance(entry, dict):
                for inner, one in entry.items():
                    yield (shown, number, printable(inner)), one
            else:
                yield (shown, number), entry


def _list(data: Any, name: str) -> list[Any]:
    """The list of this name in an object; an empty one where there is none."""
    value = data.get(name) if isinstance(data, dict) else None
    return value if isinstance(value, list) else []


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
