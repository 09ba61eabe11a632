"""Native routes: edits as jobs, their pictures, what happens to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from adapedit.http.bodies import read_edit
from adapedit.http.events import SSE_HEADERS, sse
from adapedit.http.schema import EDIT_ID, Deleted, Edit, EditList, Failure, Status, Variant
from adapedit.http.service import Owner, Parts

router = APIRouter(tags=["edits"])

EDIT = {"$ref": "#/components/schemas/EditBody"}
FILE = {"type": "string", "format": "binary"}
FORM = {
    "type": "object",
    "properties": {"request": EDIT, "image": FILE, "mask": FILE},
    "required": ["request"],
}
BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": EDIT},
        "multipart/form-data": {"schema": FORM, "encoding": {"request": {"contentType": "application/json"}}},
    },
}
PATH = {"id": "$response.body#/id"}
LINKS = {
    name: {"operationId": name, "parameters": PATH}
    for name in ("get_edit", "get_content", "get_events", "delete_edit")
}
PNG: dict[str, Any] = {"image/png": {"schema": FILE}}
OTHER: dict[str, Any] = {"application/octet-stream": {"schema": FILE}, "application/json": {"schema": {}}}
FAILED: dict[int | str, Any] = {status: {"model": Failure} for status in (500, 504)}

Id = Annotated[str, Path(description="Of an edit.")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern="^[!-~]+$")]


@router.post(
    "/v1/edits",
    operation_id="create_edit",
    status_code=202,
    response_model=Edit,
    responses={
        200: {"model": Edit, "description": "The edit that the same Idempotency-Key made.", "links": LINKS},
        202: {"links": LINKS},
        507: {"model": Failure},
    },
    openapi_extra={"requestBody": BODY},
)
async def create_edit(
    request: Request, response: Response, owner: Owner, service: Parts, idempotency_key: Key = None
) -> Edit:
    """Accept an edit. It is done even if the server is killed meanwhile; the same Idempotency-Key makes no other."""
    service.take(request, owner)
    fields, files = await read_edit(request)
    jobs = service.jobs

    def accept() -> tuple[Edit, bool]:
        row, fresh = jobs.accept(fields, files, owner, idempotency_key)
        return jobs.view(row), fresh

    edit, fresh = await service.run(accept)
    response.headers["Location"] = f"/v1/edits/{edit.id}"
    response.status_code = 202 if fresh else 200
    return edit


@router.get("/v1/edits", operation_id="list_edits", response_model=EditList)
def list_edits(
    owner: Owner,
    service: Parts,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[
        str | None, Query(pattern=EDIT_ID, description="The last id of the page before.")
    ] = None,
    order: Literal["asc", "desc"] = "desc",
    status: Status | None = None,
    model: Annotated[str | None, Query(max_length=100)] = None,
    method: Annotated[str | None, Query(max_length=100)] = None,
) -> EditList:
    """Your edits by page, those of one status, model or method."""
    jobs = service.jobs
    number = None if after is None else jobs.find(after, owner).number
    like = {"status": status, "model": model, "method": method}
    rows = jobs.store.page(owner, number, order == "desc", limit + 1, **like)
    data = [jobs.view(row) for row in rows[:limit]]
    return EditList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(rows) > limit,
    )


@router.get("/v1/edits/{id}", operation_id="get_edit", response_model=Edit)
def get_edit(id: Id, owner: Owner, service: Parts) -> Edit:
    """How an edit stands."""
    return service.jobs.view(service.jobs.find(id, owner))


@router.delete("/v1/edits/{id}", operation_id="delete_edit", response_model=Deleted)
def delete_edit(id: Id, owner: Owner, service: Parts) -> Deleted:
    """Stop an edit between two steps if it runs, and forget it with its pictures and files."""
    service.jobs.remove(service.jobs.find(id, owner))
    return Deleted(id=id)


@router.get(
    "/v1/edits/{id}/content",
    operation_id="get_content",
    response_class=Response,
    responses={200: {"content": PNG | OTHER, "description": "The picture or file."}, **FAILED},
)
async def get_content(id: Id, owner: Owner, service: Parts, variant: Variant = "target") -> Response:
    """A picture of a completed edit; or its arrays (safetensors) or description (JSON)."""
    row = await service.run(service.jobs.find, id, owner)
    content = await service.run(service.jobs.content, row, variant)
    kind = {"arrays": "application/octet-stream", "edit": "application/json"}.get(variant, "image/png")
    return Response(content, media_type=kind, headers={"X-Content-Type-Options": "nosniff"})


@router.get(
    "/v1/edits/{id}/events",
    operation_id="get_events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events."}},
)
async def get_events(request: Request, id: Id, owner: Owner, service: Parts) -> StreamingResponse:
    """Server-sent events up to the end: step, preview, and then completed, failed or cancelled.

    An edit with on_disconnect "cancel" ends when its last listener goes away.
    """
    row = await service.run(service.jobs.find, id, owner)
    told = (sse(event) async for event in service.follow(request, row))
    return StreamingResponse(told, media_type="text/event-stream", headers=SSE_HEADERS)
