"""Bodies of requests as fields and pictures, of JSON or of a form. Their length is bounded before they come here."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from anyio.to_thread import run_sync as in_thread
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from adapedit.http.errors import ApiError, field_of
from adapedit.http.schema import PICTURES
from adapedit.methods.base import one_line

Body = TypeVar("Body", bound=BaseModel)

MAX_NESTING = 16
MAX_PART = 256 * 1024
"""Bytes of a form's field that is no file."""


async def read_json(request: Request) -> dict[str, Any]:
    """The body's JSON object. Raises 415 and 400."""
    if _media_type(request) != "application/json":
        raise _wrong_type(request, "application/json")
    return await in_thread(parse_json, await request.body())


async def read_form(request: Request) -> tuple[list[tuple[str, str]], dict[str, bytes]]:
    """Fields of a form in order, and its pictures by name. Raises 415 and 400."""
    if _media_type(request) != "multipart/form-data":
        raise _wrong_type(request, "multipart/form-data")
    fields: list[tuple[str, str]] = []
    files: dict[str, bytes] = {}
    async with request.form(max_files=4, max_fields=64, max_part_size=MAX_PART) as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                fields.append((name, value))
            elif name == "request":
                fields.append((name, (await value.read()).decode(errors="replace")))
            elif (name := name.removesuffix("[]")) in PICTURES and name not in files:
                files[name] = await value.read()
            else:
                message = f"the form has {name!r} as a file, wanted image and mask, once each"
                raise ApiError(400, message, code="unknown_field", param=name[:64])
    return fields, files


async def read_edit(request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
    """An edit's fields and pictures: JSON with pictures as data URLs, or a form with `request` and files."""
    if _media_type(request) == "application/json":
        body = await request.body()
        return await in_thread(lambda: with_files(parse_json(body)))
    if _media_type(request) != "multipart/form-data":
        raise _wrong_type(request, "application/json or multipart/form-data")
    given, files = await read_form(request)
    if [name for name, _ in given] != ["request"]:
        message = (
            "the form's fields are wrong, wanted request (the edit, as JSON), and image and mask as files"
        )
        raise ApiError(400, message, code="unknown_field", param="request")
    fields = await in_thread(parse_json, given[0][1].encode(errors="replace"))
    for name in files:
        fields[name] = {**fields[name], "file": name} if isinstance(fields.get(name), Mapping) else name
    return fields, files


def parse_body(kind: type[Body], fields: Mapping[str, Any]) -> Body:
    """The checked body. Raises 400."""
    try:
        return kind(**fields)
    except ValidationError as error:
        message = one_line(error)
        raise ApiError(400, message, code="invalid_value", param=field_of(message)) from error


def with_files(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Fields whose pictures are data URLs, as fields that name them and the pictures."""
    named, files = dict(fields), {}
    for name in PICTURES:
        given = named.get(name)
        url = given.get("file") if isinstance(given, Mapping) else given
        if isinstance(url, str):
            files[name] = _decode(name, url)
            named[name] = {**given, "file": name} if isinstance(given, Mapping) else name
    return named, files


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object of UTF-8, not nested too deep, with numbers that are numbers. Raises 400."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text, parse_constant=refuse)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # fails for half a character
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)[:100]
        raise ApiError(400, f"the body is no JSON ({reason}); correct it", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, f"got a {type(value).__name__}, wanted a JSON object", code="invalid_json")
    inside: list[tuple[Any, int]] = [(value, 1)]
    while inside:
        one, depth = inside.pop()
        if depth > MAX_NESTING:
            raise ApiError(400, "the body is nested too deep; correct it", code="invalid_json")
        children = one.values() if isinstance(one, dict) else one
        inside += [(child, depth + 1) for child in children if isinstance(child, (dict, list))]
    return value


def _decode(name: str, url: str) -> bytes:
    head, _, content = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64")):
        message = f"{name} is no data URL; send data:image/png;base64,…, or a form with the file"
        raise ApiError(400, message, code="invalid_value", param=name)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{name} is no base64 ({error}); encode it again", param=name) from error


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _wrong_type(request: Request, wanted: str) -> ApiError:
    got = _media_type(request)[:60] or "none"
    return ApiError(415, f"the body's type is {got}, wanted {wanted}; set Content-Type")
