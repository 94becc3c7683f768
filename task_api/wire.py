"""The models of the wire. Generated from `api/crs-v1.4.0.yaml`; change that, not this.

`make api-models` writes this file.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr


class SourceType(StrEnum):
    """
    The role of a tarball in its task.
    """

    REPO = "repo"
    FUZZ_TOOLING = "fuzz-tooling"
    DIFF = "diff"


class TaskType(StrEnum):
    """
    Whether a whole project or a change to it is to be analysed.
    """

    FULL = "full"
    DELTA = "delta"


class SARIFBroadcastDetail(BaseModel):
    """
    One SARIF report about a task.
    """

    metadata: Annotated[
        dict[str, Any],
        Field(
            description="Goes unchanged to the consumers, to be attached to their logs and traces."
        ),
    ]
    sarif: Annotated[dict[str, Any], Field(description="The report, in SARIF.")]
    sarif_id: Annotated[UUID, Field(description="Names the report.")]
    task_id: Annotated[UUID, Field(description="The task that the report is about.")]


class StatusTasksState(BaseModel):
    """
    How many tasks are in which state.
    """

    canceled: Annotated[
        StrictInt, Field(description="Tasks that were cancelled, since the last reset.")
    ]
    errored: Annotated[
        StrictInt,
        Field(description="Tasks that could not be prepared or worked on, since the last reset."),
    ]
    failed: Annotated[
        StrictInt, Field(description="Submissions that were judged wrong, since the last reset.")
    ]
    pending: Annotated[StrictInt, Field(description="Tasks that nobody has begun to work on.")]
    processing: Annotated[
        StrictInt, Field(description="Tasks that are being prepared or worked on.")
    ]
    succeeded: Annotated[
        StrictInt, Field(description="Submissions that were judged right, since the last reset.")
    ]
    waiting: Annotated[StrictInt, Field(description="Submissions that are not judged yet.")]


class SourceDetail(BaseModel):
    """
    One gzipped tarball.
    """

    sha256: Annotated[
        StrictStr, Field(description="SHA-256 digest of the tarball as 64 hex digits.")
    ]
    type: SourceType
    url: Annotated[StrictStr, Field(description="Where the tarball can be fetched.")]


class SARIFBroadcast(BaseModel):
    """
    A message that carries SARIF reports.
    """

    broadcasts: Annotated[
        list[SARIFBroadcastDetail], Field(description="The reports, possibly none.")
    ]
    message_id: Annotated[
        UUID, Field(description="Names the message; the same when it is sent again.")
    ]
    message_time: Annotated[
        StrictInt,
        Field(description="When the message was sent, UNIX milliseconds by the sender's clock."),
    ]


class StatusState(BaseModel):
    """
    Counts, by kind.
    """

    tasks: StatusTasksState


class TaskDetail(BaseModel):
    """
    One analysis task.
    """

    deadline: Annotated[
        StrictInt, Field(description="Results count until then; UNIX milliseconds.")
    ]
    focus: Annotated[
        StrictStr,
        Field(description="The folder inside the repo tarball that holds the project to analyse."),
    ]
    harnesses_included: Annotated[
        StrictBool, Field(description="Whether the repo brings fuzzing harnesses.")
    ]
    metadata: Annotated[
        dict[str, Any],
        Field(
            description="Goes unchanged to the consumers, to be attached to their logs and traces."
        ),
    ]
    project_name: Annotated[StrictStr, Field(description="The project's name in OSS-Fuzz.")]
    source: Annotated[
        list[SourceDetail],
        Field(description="The archives that make up the task, at most one of each type."),
    ]
    task_id: Annotated[UUID, Field(description="Names the task.")]
    type: TaskType


class Status(BaseModel):
    """
    How the system is doing.
    """

    details: Annotated[
        dict[str, StrictStr] | None,
        Field(description="What is not ready, each with what to do about it."),
    ] = None
    ready: Annotated[
        StrictBool, Field(description="Whether tasks that are posted now will be worked on.")
    ]
    since: Annotated[
        StrictInt, Field(description="Since when the counters count, UNIX milliseconds.")
    ]
    state: StatusState
    version: Annotated[
        StrictStr, Field(description="Version of this software, with the commit where it is known.")
    ]


class Task(BaseModel):
    """
    A message that carries tasks.
    """

    message_id: Annotated[
        UUID, Field(description="Names the message; the same when it is sent again.")
    ]
    message_time: Annotated[
        StrictInt,
        Field(description="When the message was sent, UNIX milliseconds by the sender's clock."),
    ]
    tasks: Annotated[list[TaskDetail], Field(description="The tasks, possibly none.")]
