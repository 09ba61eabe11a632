"""What goes wrong as OpenAI's error object: our one line in `message`, the field in `param`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from adapedit.http.schema import EditBody
from adapedit.result import OutputError
from adapedit_engine.scheduler import AdmissionError, DeadlineError
from adapedit_kernels.errors import AdapEditError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "deadline_error",
    507: "quota_error",
}
"""Of `error.type` by status; below 500 else invalid_request_error, above server_error."""
INTERNAL = "the edit failed by a fault of the server, which its log tells; try again, or report it"


class ApiError(Exception):
    """An answer that says what is wrong. param: the field at fault; headers: such as Retry-After."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, " ".join(message.split()), param
        self.code = code or HTTPStatus(status).phrase.lower().replace(" ", "_")
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: BaseException) -> ApiError:
        """What to tell of an error of ours, or of one that nobody foresaw, whose text stays here."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, DeadlineError):
            return cls(504, str(error), code="deadline_exceeded", param="deadline")
        if isinstance(error, AdmissionError):
            return cls(422, str(error), code="too_large")
        if isinstance(error, OutputError):
            return cls(507, "the server can't write its results; free space on its disk", code="disk_full")
        if isinstance(error, ClientDisconnect):
            return cls(400, "the request was cut short; send it again")
        if isinstance(error, AdapEditError):
            return cls(400, str(error), code="invalid_value", param=field_of(str(error)))
        return cls(500, INTERNAL)

    @classmethod
    def later(cls, status: int, message: str, seconds: float, code: str | None = None) -> ApiError:
        """An error with the time after which to try again."""
        wait = str(max(1, min(3600, round(seconds))))
        return cls(status, message, code=code, headers={"Retry-After": wait})

    def body(self) -> dict[str, Any]:
        """The object that is sent, and that a failed edit keeps."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.body()}, self.status, self.headers)


def field_of(message: str) -> str | None:
    """The field that one of our lines begins with."""
    found = re.match(r"(?:the |there is no )?([a-z_]+)( prompt)?(?:\.[a-z_0-9.-]+)?", message)
    if found is None:
        return None
    name = f"{found[1]}_prompt" if found[2] and found[1] in ("source", "target") else found[1]
    return name if name in EditBody.model_fields else None


def where(error: BaseException) -> str:
    """Type and places of an error for a log: its text may hold somebody's prompt."""
    places, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' < '.join(places[::-1][:8])}"


def answer_errors(app: FastAPI) -> None:
    """Let an app answer its framework's errors so. All others are answered at its border, see `limits`."""

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        return ApiError(422, f"{param or 'the request'}: {first['msg']}", param=param).response()

    @app.exception_handler(HTTPException)
    def routing(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 405:
            there = _methods(app, request.url.path)
            message = f"{request.method} is not for {request.url.path}; use {' or '.join(there)}"
            return ApiError(405, message, headers={"Allow": ", ".join(there)}).response()
        message = str(error.detail)
        if error.status_code == 404:
            message = "there is nothing at this path; see /openapi.json for what there is"
        return ApiError(error.status_code, message, headers=error.headers).response()


def _methods(app: FastAPI, path: str) -> list[str]:
    """What the document has at a path."""
    found = []
    for template, operations in app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), path):
            found += [name.upper() for name in operations]
    return sorted(found)
