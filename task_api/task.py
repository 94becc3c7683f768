"""The domain: what a task, a source and a state are, and what can be wrong with each.

The error tree of this package:

    ButtercupError
    ├── TaskInvalid             a posted task cannot be prepared; lists every problem
    └── RegistryError
        ├── RegistryUnavailable Redis is away, loading, full, or refuses writes
        ├── SchemaMismatch      the registry was written by a newer version
        ├── UnknownTask         no task has this id
        └── TransitionRefused   the task is in a state (or has a token) that forbids the move
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import SplitResult, urlsplit

MAX_DEADLINE_DAYS = 366
"""How far ahead a deadline may lie, in days."""

LEAST_MILLISECONDS = 100_000_000_000
"""A UNIX time below this was meant in seconds: as milliseconds it would lie before March 1973."""

MAX_NAME_BYTES = 255
MAX_FOCUS_BYTES = 1024
MAX_URL_CHARACTERS = 16_384

EXAMPLE_UUID = "123e4567-e89b-42d3-a456-426614174000"

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\Z", re.IGNORECASE | re.ASCII)
_DIGEST = re.compile(r"[0-9a-fA-F]{64}\Z")
_PROJECT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}\Z")
_CONTROL_OR_SPACE = re.compile(r"[\x00-\x20\x7f]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ButtercupError(Exception):
    """Base of every error that this project raises on purpose."""


class TaskType(StrEnum):
    """What is to be analysed: a whole project, or the change that a diff makes to it."""

    FULL = "full"
    DELTA = "delta"


class SourceType(StrEnum):
    """The role of a source archive in its task (CRS API 1.4.0, `types.SourceType`)."""

    REPO = "repo"
    FUZZ_TOOLING = "fuzz-tooling"
    DIFF = "diff"


class TaskState(StrEnum):
    """Where a task stands. `task_api/lua/common.lua` holds the table of allowed moves."""

    PENDING = "pending"
    SCHEDULED = "scheduled"
    DOWNLOADING = "downloading"
    READY = "ready"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ERRORED = "errored"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def live(self) -> bool:
        """Whether the task can still be cancelled and can still expire."""
        return self in LIVE_STATES


LIVE_STATES = (TaskState.PENDING, TaskState.SCHEDULED, TaskState.DOWNLOADING, TaskState.READY)


class Outcome(StrEnum):
    """What a consumer reports about a ready task."""

    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ERRORED = "errored"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a task ended or was put back: a code for programs, a text for people."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a posted task: where it stands and what to do about it."""

    path: tuple[str | int, ...]
    text: str

    def __str__(self) -> str:
        """`source[1].sha256: what to do`."""
        location = ""
        for part in self.path:
            location += f"[{part}]" if isinstance(part, int) else f".{part}" if location else part
        return f"{location}: {self.text}" if location else self.text


class TaskInvalid(ButtercupError):
    """A task that cannot be prepared, with all of its problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


class RegistryError(ButtercupError):
    """The registry cannot do what was asked."""


class RegistryUnavailable(RegistryError):
    """Redis cannot be reached, is loading, is full, or refuses writes; try again later."""


class SchemaMismatch(RegistryError):
    """The registry in this Redis was written with another version of the key layout."""


class UnknownTask(RegistryError):
    """No task with this id is recorded."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"no task {task_id} is recorded")
        self.task_id = task_id


class TransitionRefused(RegistryError):
    """A move that the task's state or token forbids.

    A worker takes it as "stop and clean up", never as an error of the task.

    Attributes:
        task_id: the task.
        state: the state in which the registry found it.
        token: its fencing token.
        run_id: the run that holds or last held it, or None.
        reason: why the task is in that state, if it has a reason.
    """

    def __init__(
        self,
        task_id: str,
        move: str,
        *,
        state: TaskState,
        token: int,
        run_id: str | None = None,
        reason: Reason | None = None,
        stale: bool = False,
    ) -> None:
        text = f"task {task_id} cannot be {move}: it is {state}"
        if stale:
            text += " and another attempt has taken it over"
        if reason is not None:
            text += f" ({reason.text})"
        super().__init__(text)
        self.task_id = task_id
        self.state = state
        self.token = token
        self.run_id = run_id
        self.reason = reason
        self.stale = stale


@dataclass(frozen=True, slots=True)
class Source:
    """One gzipped tarball of a task.

    Attributes:
        type: its role.
        sha256: digest of the archive, 64 lower-case hex digits.
        urls: where it can be fetched, best first. The query of a URL is a credential and is
            never shown; `hosts` is what may be.
    """

    type: SourceType
    sha256: str
    urls: tuple[str, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host names of the URLs, each once, in order."""
        return tuple(dict.fromkeys(url_host(url) for url in self.urls))


@dataclass(frozen=True, slots=True)
class Task:
    """An analysis task as a sender posted it.

    Attributes:
        task_id: UUID, lower-case.
        type: full or delta.
        project_name: OSS-Fuzz project name.
        focus: relative folder inside the repo tarball.
        deadline_ms: UNIX milliseconds.
        sources: at most one of each type.
        metadata: any JSON object; reaches the consumers unchanged.
        harnesses_included: whether the repo ships fuzzing harnesses.
        message_id: UUID of the message that brought the task, lower-case.
        message_time_ms: UNIX milliseconds, by the sender's clock.
    """

    task_id: str
    type: TaskType
    project_name: str
    focus: str
    deadline_ms: int
    sources: tuple[Source, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    harnesses_included: bool = True
    message_id: str = ""
    message_time_ms: int = 0

    def source(self, type_: SourceType) -> Source | None:
        """The source of this type, or None."""
        return next((source for source in self.sources if source.type == type_), None)

    @property
    def identity(self) -> str:
        """Digest over what makes a task the same task when it is posted again.

        URLs and metadata are not part of it: a sender signs its URLs anew.
        """
        parts = [
            self.task_id,
            self.type,
            self.project_name,
            self.focus,
            self.deadline_ms,
            sorted({(source.type, source.sha256) for source in self.sources}),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; `from_dict` reads it back."""
        return {
            "task_id": self.task_id,
            "type": str(self.type),
            "project_name": self.project_name,
            "focus": self.focus,
            "deadline_ms": self.deadline_ms,
            "sources": [
                {"type": str(source.type), "sha256": source.sha256, "urls": list(source.urls)}
                for source in self.sources
            ],
            "metadata": dict(self.metadata),
            "harnesses_included": self.harnesses_included,
            "message_id": self.message_id,
            "message_time_ms": self.message_time_ms,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Task:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, ValueError: the mapping is not of that form.
        """
        return cls(
            task_id=data["task_id"],
            type=TaskType(data["type"]),
            project_name=data["project_name"],
            focus=data["focus"],
            deadline_ms=data["deadline_ms"],
            sources=tuple(
                Source(SourceType(source["type"]), source["sha256"], tuple(source["urls"]))
                for source in data["sources"]
            ),
            metadata=data["metadata"],
            harnesses_included=data["harnesses_included"],
            message_id=data["message_id"],
            message_time_ms=data["message_time_ms"],
        )


def normalize_uuid(text: str) -> str:
    """The lower-case, hyphenated form of a UUID; ids become path and key parts.

    Raises:
        ValueError: the text is not a UUID in its 36-character form.
    """
    if not _UUID.match(text):
        raise ValueError(f"'{printable(text)}' is not a UUID like {EXAMPLE_UUID}")
    return text.lower()


def is_digest(text: str) -> bool:
    """Whether the text is a SHA-256 digest: 64 hex digits, any case."""
    return _DIGEST.match(text) is not None


def split_url(url: str) -> SplitResult | None:
    """The parts of an absolute URL, or None where it cannot be read."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def url_host(url: str) -> str:
    """The host of a URL, the one part of it that may always be shown."""
    parts = split_url(url)
    if parts is None:
        return "?"
    return parts.hostname or ("local file" if parts.scheme == "file" else "?")


def safe_url(url: str) -> str:
    """The URL without what may be a credential: no user, password, query or fragment."""
    parts = split_url(url)
    if parts is None:
        return "<unreadable URL>"
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    if parts.port is not None:
        host += f":{parts.port}"
    return printable(f"{parts.scheme}://{host}{parts.path}", limit=300)


def printable(text: str, limit: int = 80) -> str:
    """Text of unknown origin, escaped and cut for a message, a log or a page."""
    shown = text[:limit].encode("unicode_escape").decode("ascii")
    return shown if len(text) <= limit else shown + "…"


def problems_of(
    task: Task, *, now_ms: int, schemes: Sequence[str] = ("http", "https")
) -> list[Problem]:
    """Everything that keeps a task from being prepared, each with what to do about it.

    Args:
        task: the task, as posted.
        now_ms: the time to judge the deadline by, UNIX milliseconds.
        schemes: which URL schemes are allowed.

    Returns:
        The problems, in the order of the fields; empty for a valid task. Paths are relative to
        the task and use the names of the CRS API.
    """
    found: list[Problem] = []
    if text := deadline_problem(task.deadline_ms, now_ms):
        found.append(Problem(("deadline",), text))
    if text := _focus_problem(task.focus):
        found.append(Problem(("focus",), text))
    if not _PROJECT_NAME.match(task.project_name):
        found.append(
            Problem(
                ("project_name",),
                f"'{printable(task.project_name)}' is not an OSS-Fuzz project name; use letters, "
                "digits, '_', '.', '+' and '-', at most 128 of them",
            )
        )
    found += _source_problems(task, schemes)
    return found


def deadline_problem(deadline_ms: int, now_ms: int) -> str | None:
    """What is wrong with a deadline, or None.

    Args:
        deadline_ms: the deadline, UNIX milliseconds.
        now_ms: the present, UNIX milliseconds.
    """
    if 0 < deadline_ms < LEAST_MILLISECONDS:
        moment = datetime.fromtimestamp(deadline_ms, UTC)
        return (
            f"{deadline_ms} looks like seconds ({moment:%Y-%m-%d %H:%M:%S} UTC); the API counts "
            f"milliseconds: multiply by 1000"
        )
    if deadline_ms <= now_ms:
        return (
            f"{deadline_ms} is in the past (now is {now_ms}); send a UNIX time in milliseconds "
            "that is still to come"
        )
    if deadline_ms > now_ms + MAX_DEADLINE_DAYS * 86_400_000:
        return (
            f"{deadline_ms} is more than {MAX_DEADLINE_DAYS} days ahead; send a nearer UNIX time, "
            "in milliseconds, not in micro- or nanoseconds"
        )
    return None


def _focus_problem(focus: str) -> str | None:
    advice = "name a folder inside the repo tarball, such as 'curl' or 'libs/png'"
    if not focus:
        return f"is empty; {advice}"
    if focus.startswith("/"):
        return f"'{printable(focus)}' is absolute; {advice}"
    if _CONTROL.search(focus):
        return f"'{printable(focus)}' holds a control character; {advice}"
    if "\\" in focus:
        return f"'{printable(focus)}' holds a backslash; separate folders with '/'"
    parts = focus.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return f"'{printable(focus)}' has an empty, '.' or '..' part; {advice}"
    try:
        encoded = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return f"'{printable(focus)}' holds half of a surrogate pair; {advice}"
    if max(encoded) > MAX_NAME_BYTES or sum(encoded) + len(parts) > MAX_FOCUS_BYTES:
        return (
            f"'{printable(focus)}' is too long: {MAX_NAME_BYTES} bytes for each folder and "
            f"{MAX_FOCUS_BYTES} in all are allowed; {advice}"
        )
    return None


def _source_problems(task: Task, schemes: Sequence[str]) -> list[Problem]:
    found: list[Problem] = []
    seen: set[SourceType] = set()
    for number, source in enumerate(task.sources):
        if source.type in seen:
            found.append(
                Problem(
                    ("source", number, "type"),
                    f"a second source of type '{source.type}'; send one of each type at most",
                )
            )
        seen.add(source.type)
        if not is_digest(source.sha256):
            found.append(
                Problem(
                    ("source", number, "sha256"),
                    f"'{printable(source.sha256)}' is not a SHA-256 digest; send 64 hex digits, "
                    "as sha256sum prints them",
                )
            )
        found.extend(
            Problem(("source", number, "url"), text)
            for url in source.urls
            if (text := _url_problem(url, schemes))
        )
    if SourceType.REPO not in seen:
        found.append(Problem(("source",), "no source of type 'repo'; every task needs one"))
    if task.type is TaskType.DELTA and SourceType.DIFF not in seen:
        found.append(
            Problem(
                ("source",),
                "no source of type 'diff'; a task of type 'delta' needs one (or send type 'full')",
            )
        )
    return found


def _url_problem(url: str, schemes: Sequence[str]) -> str | None:
    allowed = " or ".join(f"{scheme}://" for scheme in schemes)
    if len(url) > MAX_URL_CHARACTERS:
        return f"is longer than {MAX_URL_CHARACTERS} characters; send a shorter one"
    if not url:
        return f"is empty; send a URL that begins with {allowed}"
    if _CONTROL_OR_SPACE.search(url):
        return "holds a blank or a control character; escape it as %20 and the like"
    parts = split_url(url)
    if parts is None:
        return f"cannot be read as a URL; check its host and port, and begin with {allowed}"
    if parts.scheme not in schemes:
        return f"has the scheme '{printable(parts.scheme)}'; send a URL that begins with {allowed}"
    if parts.scheme != "file" and not parts.hostname:
        return f"names no host; send a URL such as {schemes[0]}://host/archive.tar.gz"
    return None
