"""Asks the competition API, in the background, whether it answers us."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

import urllib3

PING_PATH: Final = "/v1/ping/"
PING_TIMEOUT_SECONDS: Final = 5.0
UNREACHABLE: Final = "cannot be reached; check BUTTERCUP_TASK_SERVER_COMPETITION_API_URL"


@dataclass(frozen=True, slots=True)
class _Result:
    problem: str | None
    at: float


class CompetitionPing:
    """Pings the competition API from a thread of its own; nobody who asks for the result waits.

    CRS API 1.4.0: a system reports `ready` only after it has reached `GET /v1/ping/`.
    """

    def __init__(self, url: str, key_id: str, token: str, *, every_seconds: float = 30.0) -> None:
        self._url = url.rstrip("/") + PING_PATH
        self._headers = urllib3.make_headers(
            # The header is Latin-1 by urllib3; bytes beyond it are sent as UTF-8.
            basic_auth=f"{key_id}:{token}".encode().decode("latin-1"),
            user_agent="buttercup-task-server",
        )
        self._every = every_seconds
        self._stop = threading.Event()
        self._result: _Result | None = None
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="competition-ping", daemon=True)

    def start(self) -> None:
        """Begin to ping."""
        self._started = time.monotonic()
        self._thread.start()

    def close(self) -> None:
        """Stop pinging; does not wait for an answer that is under way."""
        self._stop.set()

    @property
    def problem(self) -> str | None:
        """What is wrong with the competition API, or None when the last ping was answered."""
        result = self._result
        if result is None:
            waited = time.monotonic() - self._started
            if waited < PING_TIMEOUT_SECONDS:
                return "not checked yet"
            return f"no answer for {waited:.0f} s"
        age = time.monotonic() - result.at
        # An API that sends a byte now and then would keep one ping busy for ever.
        if age > self._every + 2 * PING_TIMEOUT_SECONDS:
            return f"no answer for {age:.0f} s"
        return result.problem

    def _run(self) -> None:
        with urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=PING_TIMEOUT_SECONDS, read=PING_TIMEOUT_SECONDS),
            retries=False,
        ) as http:
            while not self._stop.is_set():
                problem = self._ping(http)
                self._result = _Result(problem, time.monotonic())
                self._stop.wait(self._every)

    def _ping(self, http: urllib3.PoolManager) -> str | None:
        try:
            response = http.request(
                "GET", self._url, headers=self._headers, redirect=False, preload_content=False
            )
            response.close()  # the status says it all
        except urllib3.exceptions.NewConnectionError:  # by its class, a time-out too
            return UNREACHABLE
        except urllib3.exceptions.TimeoutError:
            return f"does not answer within {PING_TIMEOUT_SECONDS:.0f} s"
        except urllib3.exceptions.SSLError:
            return "its TLS certificate is not accepted; check the URL and the certificates"
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            return UNREACHABLE
        if response.status == 200:
            return None
        if response.status in {401, 403}:
            return (
                f"answers {response.status}; check BUTTERCUP_TASK_SERVER_COMPETITION_API_KEY_ID "
                "and ..._KEY_TOKEN"
            )
        return f"answers {response.status} instead of 200"
