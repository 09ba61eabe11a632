"""OpenAI's image routes over the same jobs: the `openai` package works with nothing but a base URL."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from adapedit.http.bodies import parse_body, parse_json, read_form, read_json
from adapedit.http.edits import Key
from adapedit.http.errors import ApiError
from adapedit.http.events import SSE_HEADERS, sse
from adapedit.http.schema import ENDED, EditBody, Failure, ImageBody
from adapedit.http.service import Owner, Parts, Service
from adapedit.http.store import Row

router = APIRouter(tags=["openai"])

WITHOUT_SOURCE = ("instruct-pix2pix", "sdedit")
"""Methods that need no words for what the picture shows; the first that a model can run is taken."""
TEXTS = ("prompt", "source_prompt", "negative_prompt", "source_negative_prompt", "model", "user", "size")
"""Fields of a form that are texts even where they look like numbers."""
MAX_DEPTH = 4


OWN, FORM = ({"$ref": f"#/components/schemas/{name}"} for name in ("ImageBody", "ImageForm"))
PICTURES: dict[int | str, Any] = {
    200: {
        "description": "The pictures; of a stream, events.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["created", "data"]}},
            "text/event-stream": {},
        },
    },
    **{status: {"model": Failure} for status in (500, 504, 507)},
}


@router.post(
    "/v1/images/edits",
    operation_id="edit_image",
    response_class=Response,
    responses=PICTURES,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": FORM}},
        }
    },
)
async def edit_image(request: Request, owner: Owner, service: Parts, idempotency_key: Key = None) -> Response:
    """Edit a picture. Without source_prompt by a method that needs none."""
    given, files = await read_form(request)
    if "image" not in files:
        raise ApiError(400, "image is missing; send the picture as a file of the form", param="image")
    return await _answer(request, owner, service, _unfold(given), files, idempotency_key)


@router.post(
    "/v1/images/generations",
    operation_id="generate_image",
    response_class=Response,
    responses=PICTURES,
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": OWN}}}},
)
async def generate_image(
    request: Request, owner: Owner, service: Parts, idempotency_key: Key = None
) -> Response:
    """Make a picture of the prompt; with source_prompt the edit of the picture which that one gives."""
    return await _answer(request, owner, service, await read_json(request), {}, idempotency_key)


async def _answer(
    request: Request,
    owner: str,
    service: Service,
    given: dict[str, Any],
    files: dict[str, bytes],
    key: str | None,
) -> Response:
    body, kind = parse_body(ImageBody, given), "edit" if files else "generation"
    fields = _edits(body, service.jobs.lane(body.model).methods, kind)
    if body.stream and len(fields) > 1:
        raise ApiError(400, f"n is {body.n}, and a stream shows one picture; leave n out", param="n")
    service.take(request, owner, len(fields))
    if len(fields) > service.settings.max_pictures:
        raise ApiError(
            422, f"n is {body.n}, at most {service.settings.max_pictures} are made here", param="n"
        )
    rows = await _accept(service, fields, files, owner, key)
    if body.stream:
        told = _streamed(request, service, rows[0], body, f"image_{kind}")
        return StreamingResponse(told, media_type="text/event-stream", headers=SSE_HEADERS)
    await asyncio.gather(*(_ended(request, service, row) for row in rows))
    data = [await _picture(request, service, row, body) for row in rows]
    facts = {"created": int(time.time()), "output_format": body.output_format, "data": data}
    return JSONResponse(facts, headers={"X-Edit-Ids": ",".join(row.id for row in rows)})


def _edits(body: ImageBody, methods: list[str], kind: str) -> list[dict[str, Any]]:
    """Fields of the edits to be made, without pictures. methods: what the model runs; kind: edit or generation."""
    fields = {"on_disconnect": "cancel", **(body.model_extra or {})}
    given = fields.get("method")
    name = given.get("name") if isinstance(given, Mapping) else given
    if fields.get("source_prompt") is None:
        if kind == "edit":
            name = name or next(method for method in WITHOUT_SOURCE if method in methods)
            if name not in WITHOUT_SOURCE:
                message = (
                    f"method {name} has to know what the picture shows: give source_prompt in extra_body, or "
                )
                message += f"take one of the methods that need none: {', '.join(WITHOUT_SOURCE)}"
                raise ApiError(400, message, code="missing_source_prompt", param="source_prompt")
        fields["method"] = given or name or "plain"
        fields["source_prompt"] = body.prompt
    if body.size not in (None, "auto"):
        fields["width"], fields["height"] = map(int, str(body.size).split("x"))
    if body.stream and body.partial_images:
        steps = fields.get("num_inference_steps", EditBody.model_fields["num_inference_steps"].default)
        if isinstance(steps, int):
            fields["preview_every"] = max(1, -(-steps // (body.partial_images + 1)))
    fields |= {"target_prompt": body.prompt, "model": body.model}
    first = fields.get("seed", 0)
    if body.n in (None, 1) or not isinstance(first, int):
        return [fields]
    return [{**fields, "seed": first + place} for place in range(body.n or 1)]


async def _accept(
    service: Service, fields: list[dict[str, Any]], files: dict[str, bytes], owner: str, key: str | None
) -> list[Row]:
    """All edits, or none where one is refused."""
    rows: list[Row] = []
    made: list[Row] = []
    try:
        for place, one in enumerate(fields):
            named = {**one, **{name: name for name in files}}
            own = None if key is None else f"{key}/{place}"
            row, fresh = await service.run(service.jobs.accept, named, files, owner, own)
            rows.append(row)
            made += [row] if fresh else []
    except BaseException:
        for row in made:
            await service.run(service.jobs.remove, row)
        raise
    return rows


async def _ended(request: Request, service: Service, row: Row) -> None:
    """Wait for the end. Raises `ClientDisconnect` where nobody waits with us."""
    told = {event[0] async for event in service.follow(request, row) if event is not None}
    if told.isdisjoint(ENDED):
        raise ClientDisconnect


async def _picture(request: Request, service: Service, row: Row, body: ImageBody) -> dict[str, Any]:
    """The target as OpenAI has it. Raises what the edit ran into."""
    found = await service.run(service.jobs.find, row.id, row.owner)
    png = await service.run(service.jobs.content, found, "target")
    if body.response_format == "url":
        return {"url": str(request.url_for("get_content", id=row.id))}
    return {"b64_json": await service.run(_encoded, png, body)}


def _encoded(png: bytes, body: ImageBody) -> str:
    """A PNG in the wanted format, in base64."""
    if body.output_format not in (None, "png"):
        from PIL import Image

        buffer, quality = io.BytesIO(), 100 if body.output_compression is None else body.output_compression
        Image.open(io.BytesIO(png)).save(buffer, body.output_format.upper(), quality=quality)
        png = buffer.getvalue()
    return base64.b64encode(png).decode()


async def _streamed(
    request: Request, service: Service, row: Row, body: ImageBody, kind: str
) -> AsyncIterator[str]:
    """Events as OpenAI names them."""
    facts = {
        "created_at": int(row.created),
        "size": body.size,
        "quality": "auto",
        "background": "opaque",
        "output_format": body.output_format,
    }
    shown = 0
    try:
        async for event in service.follow(request, row):
            if event is None:
                yield sse(None)
            elif event[0] == "preview" and shown < (body.partial_images or 0):
                picture = await service.run(_encoded, base64.b64decode(event[1]["image"]), body)
                data = {"b64_json": picture, "partial_image_index": shown, **facts}
                shown += 1
                yield sse((f"{kind}.partial_image", {"type": f"{kind}.partial_image", **data}))
            elif event[0] in ENDED:
                data = (await _picture(request, service, row, body)) | facts
                yield sse((f"{kind}.completed", {"type": f"{kind}.completed", **data}))
    except ApiError as error:
        yield sse(("error", {"error": error.body()}))


def _unfold(given: list[tuple[str, str]]) -> dict[str, Any]:
    """Fields of a form, nested as `method[name]` and `words[]` say, with numbers and truth values."""
    found: dict[str, Any] = {}
    for name, text in given:
        parts = re.findall(r"[^\[\]]+|\[\]", name)
        if not parts or parts[0] == "[]" or len(parts) > MAX_DEPTH or "[]" in parts[1:-1]:
            raise ApiError(
                400, f"the form has a field {name[:64]!r}; send nested values as JSON", param=name[:64]
            )
        at: Any = found
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            value = _value(parts[0], text) if after is None else [] if after == "[]" else {}
            if isinstance(at, list):
                at.append(value)
            elif not isinstance(at, dict) or (after is None and part in at):
                raise ApiError(400, f"the form says {name[:64]!r} twice; say it once", param=name[:64])
            else:
                at = at.setdefault(part, value)
    return found


def _value(name: str, text: str) -> Any:
    if name in TEXTS:
        return text
    try:
        return parse_json(b'{"value": ' + text.encode() + b"}")["value"]
    except ApiError:
        return text
