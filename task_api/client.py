"""A client of the task server, for the commands that call it."""

from __future__ import annotations

import json
import time
import uuid
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self
from urllib.parse import quote

import urllib3

from task_api.task import ButtercupError, split_url

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0


class ServerUnavailable(ButtercupError):
    """The task server does not answer, or cannot reach its Redis; try again later."""


class RequestRefused(ButtercupError):
    """The task server refused the request; the text says why.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class TaskServerClient:
    """Calls one task server with one key; a context manager.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        key_id: the key's id.
        token: the key's token.
    """

    def __init__(self, url: str, key_id: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._http = urllib3.PoolManager(
            headers={"Authorization": f"Basic {b64encode(f'{key_id}:{token}'.encode()).decode()}"},
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            retries=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.clear()

    def submit(self, *tasks: Mapping[str, Any]) -> str:
        """Post tasks in one message (CRS API, `TaskDetail`); return the server's answer.

        Raises:
            ServerUnavailable, RequestRefused: they are not accepted.
        """
        message = {
            "message_id": str(uuid.uuid4()),
            "message_time": int(time.time() * 1000),
            "tasks": list(tasks),
        }
        return str(self._call("POST", "/v1/task/", message))

    def task(self, task_id: str) -> dict[str, Any]:
        """What the server shows of a task (`views.TaskView`).

        Raises:
            ServerUnavailable, RequestRefused: it cannot be shown.
        """
        found: dict[str, Any] = self._call("GET", f"/v1/task/{quote(task_id)}/")
        return found

    def status(self) -> dict[str, Any]:
        """What the server says of itself (CRS API, `Status`).

        Raises:
            ServerUnavailable, RequestRefused: it says nothing.
        """
        found: dict[str, Any] = self._call("GET", "/status/")
        return found

    def cancel(self, task_id: str) -> str:
        """Cancel a task; return the server's answer.

        Raises:
            ServerUnavailable, RequestRefused: it is not cancelled.
        """
        return str(self._call("DELETE", f"/v1/task/{quote(task_id)}/"))

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        try:
            answer = self._http.request(
                method,
                self._url + path,
                body=None if body is None else json.dumps(body),
                headers={**self._http.headers, "Content-Type": "application/json"},
                redirect=False,
            )
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise ServerUnavailable(
                f"the task server at {self._url} does not answer ({_short(error)})"
            ) from None
        try:
            content = json.loads(answer.data)
        except ValueError:
            content = None
        if 200 <= answer.status < 300 and content is not None:
            return content
        text = _detail(content) or f"status {answer.status}"
        if answer.status == 503:
            raise ServerUnavailable(text)
        if content is None:
            text = f"{self._url} is no task server: it answers {answer.status}, and not in JSON"
        raise RequestRefused(answer.status, text)


def _short(error: Exception) -> str:
    """An error of urllib3 without the object that it happened to."""
    text = str(error)
    return text.rpartition("): ")[2] or type(error).__name__


def _detail(content: Any) -> str:
    """The reason in an answer, on one line."""
    detail = content.get("detail") if isinstance(content, dict) else None
    if isinstance(detail, Sequence) and not isinstance(detail, str):
        return "; ".join(f"{one.get('path', '')}: {one.get('message', '')}" for one in detail)
    return str(detail) if detail else ""


def is_server_url(url: str) -> bool:
    """Whether this may be the URL of a task server; it holds no credentials, so it may be shown."""
    parts = split_url(url)
    return (
        parts is not None
        and parts.scheme in {"http", "https"}
        and bool(parts.hostname)
        and parts.username is None
        and not (parts.query or parts.fragment)
    )
