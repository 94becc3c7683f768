"""`/v1/sarif/`: SARIF broadcasts (CRS API)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from task_api import wire
from task_api.context import Body, Registry, require_key
from task_api.intake import broadcast
from task_api.validation import bounded, parse_json, validated, whole_numbers

router = APIRouter(prefix="/v1/sarif", tags=["sarif"], dependencies=[Depends(require_key)])


def sarif_message(body: Body) -> wire.SARIFBroadcast:
    """Read the body of `POST /v1/sarif/`; a plain function, so that a thread does the work."""
    return validated(wire.SARIFBroadcast, whole_numbers(bounded(parse_json(body))))


@router.post(
    "/",
    operation_id="submit_sarif",
    summary="Broadcast SARIF reports",
    response_description="The reports are stored.",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/SARIFBroadcast"}}
            },
        }
    },
)
def submit_sarif(
    message: Annotated[wire.SARIFBroadcast, Depends(sarif_message)], registry: Registry
) -> str:
    """Keep each report for its task, once for each sarif_id."""
    new = sum(
        registry.add_sarif(str(one.task_id), str(one.sarif_id), broadcast(one))
        for one in message.broadcasts
    )
    return f"accepted {new} new of {len(message.broadcasts)} reports"
