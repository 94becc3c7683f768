"""Reads the bodies of requests, and keeps the work on large ones away from the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import anyio.to_thread
from fastapi import HTTPException, Request

from task_api.context import context_of

SMALL_BYTES: Final = 16 * 1024
SMALL_OBJECTS: Final = 64
"""What takes the event loop a few milliseconds at the most, however hostile it is.

A thread costs more than the work on a usual message. The work on a body grows with its length, and
with its objects: each lacks its fields, and each lack costs a message.
"""

_Result = TypeVar("_Result")


async def raw_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: 413, it is larger than the settings allow.
    """
    limit = context_of(request).settings.max_body_bytes
    announced = request.headers.get("Content-Length", "")
    chunks = []
    size = int(announced) if announced.isdecimal() else 0
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            chunks.append(chunk)
    if size > limit:
        raise HTTPException(
            413,
            f"the body is larger than {limit} bytes; send fewer tasks or reports in one message, "
            "or raise BUTTERCUP_TASK_SERVER_MAX_BODY_BYTES on the server",
            {"Connection": "close"},
        )
    return b"".join(chunks)


async def worked_out(body: bytes, function: Callable[..., _Result], *arguments: object) -> _Result:
    """Call a function whose work grows with a body: in a thread, unless the body is small."""
    if len(body) <= SMALL_BYTES and body.count(b"{") <= SMALL_OBJECTS:
        return function(*arguments)
    return await anyio.to_thread.run_sync(function, *arguments)
