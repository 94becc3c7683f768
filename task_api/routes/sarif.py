"""`/v1/sarif/`: SARIF broadcasts (CRS API)."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from task_api import operations, wire
from task_api.bodies import raw_body, worked_out
from task_api.context import context_of, require_key
from task_api.intake import broadcast
from task_api.operations import Operation
from task_api.validation import bounded, parse_json, validated, whole_numbers

router = APIRouter(prefix="/v1/sarif", tags=["sarif"], dependencies=[Depends(require_key)])


def additions(body: bytes) -> list[Operation[bool]]:
    """Read the body of `POST /v1/sarif/`: what there is to do in the registry."""
    message = validated(wire.SARIFBroadcast, whole_numbers(bounded(parse_json(body))))
    return [
        operations.add_sarif(str(one.task_id), str(one.sarif_id), broadcast(one))
        for one in message.broadcasts
    ]


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
async def submit_sarif(request: Request) -> str:
    """Keep each report for its task, once for each sarif_id."""
    gate = context_of(request).gate
    body = await raw_body(request)
    added = [await gate.run(addition) for addition in await worked_out(body, additions, body)]
    return f"accepted {sum(added)} new of {len(added)} reports"
