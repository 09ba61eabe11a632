"""Edits on a server of `adapedit serve`, by the request and result types of Python: `Client`, and `AsyncClient`.

What both say to a server is written once, as generators that yield calls and are sent what came back.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from adapedit.http import require
from adapedit.request import EditRequest, check_callback, check_request
from adapedit.result import EditResult
from adapedit_kernels.errors import AdapEditError

require("serve", "httpx")

import httpx  # noqa: E402

Progress = Callable[[int, int], None]
Kind = TypeVar("Kind")
AGAIN = (429, 503)
"""Answers after which a call is made again: the server is full, or it is starting or ending."""
PAUSE = 0.5
KEY = "ADAPEDIT_KEY"


class ServerError(AdapEditError):
    """What a server answered. status: of HTTP; code, param: see the API's errors."""

    def __init__(
        self, message: str, status: int = 0, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @classmethod
    def of(cls, response: httpx.Response) -> ServerError:
        try:
            error = response.json()["error"]
            return cls(error["message"], response.status_code, error["code"], error["param"])
        except (ValueError, KeyError, TypeError):
            return cls(
                f"the server answered {response.status_code} and no reason; check its address",
                response.status_code,
            )


@dataclass(frozen=True)
class _Call:
    """A request of HTTP. listen: takes the lines of a stream, whose end is the answer; None: the body is wanted."""

    method: str
    path: str
    more: Mapping[str, Any]
    listen: Callable[[str], None] | None = None

    def ask(self, client: Any) -> Any:
        return client.build_request(self.method, self.path, **self.more)


Talk = Generator[_Call, httpx.Response, Kind]


def _get(path: str, **more: Any) -> _Call:
    return _Call("GET", path, more)


def _submit(request: EditRequest, key: str | None, options: Mapping[str, Any]) -> Talk[str]:
    check_request(request)
    fields, files = request.to_wire()
    fields |= {name: value for name, value in options.items() if value is not None}
    # A key of our own, so that the call can be made again when nobody knows whether it came.
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    more: dict[str, Any] = {"json": fields}
    if files:
        more = {"data": {"request": json.dumps(fields, allow_nan=False)}, "files": files}
    answer = yield _Call("POST", "/v1/edits", {**more, "headers": headers})
    return str(answer.json()["id"])


def _result(id: str, request: EditRequest, progress: Progress | None) -> Talk[EditResult]:
    from adapedit.http import archive

    check_callback(progress)

    def told(line: str) -> None:
        if progress is not None and line.startswith("data: "):
            data = json.loads(line.removeprefix("data: "))
            if data.get("steps"):
                progress(data["step"], data["steps"])

    while (yield _get(f"/v1/edits/{id}")).json()["status"] in ("queued", "in_progress"):
        yield _Call("GET", f"/v1/edits/{id}/events", {}, told)
    files = {}
    variants = {
        archive.ARRAYS: "arrays",
        archive.EDIT: "edit",
        **{f"{name}.png": name for name in archive.PICTURES},
    }
    for name, variant in variants.items():
        files[name] = (yield _get(f"/v1/edits/{id}/content", params={"variant": variant})).content
    return archive.read(files.__getitem__, request)


def _edit(
    request: EditRequest, progress: Progress | None, delete: bool, options: Mapping[str, Any]
) -> Talk[EditResult]:
    id = yield from _submit(request, None, options)
    result = yield from _result(id, request, progress)
    if delete:
        yield _Call("DELETE", f"/v1/edits/{id}", {})
    return result


def _json(call: _Call) -> Talk[dict[str, Any]]:
    return dict((yield call).json())


class _Base:
    """url: of the server. key: an API key; None: that of ADAPEDIT_KEY. patience: seconds in which a call is tried again
    that could not be made, or was answered with 429 or 503."""

    def __init__(self, url: str, *, key: str | None = None, patience: float = 60.0) -> None:
        key = os.environ.get(KEY) if key is None else key
        self._patience = patience
        self._options: dict[str, Any] = {
            "base_url": url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(60.0),
        }
        try:
            if httpx.URL(url).scheme not in ("http", "https"):
                raise ValueError("wanted http:// or https://")
        except (ValueError, TypeError, httpx.InvalidURL) as error:
            raise ServerError(f"the server is {url!r} ({error}); give it as http://HOST:PORT") from error

    def _wait(self, error: httpx.TransportError | httpx.Response, since: float) -> float:
        """Seconds after which to try again. Raises when that is no use."""
        again = not isinstance(error, httpx.Response) or error.status_code in AGAIN
        late = time.monotonic() - since > self._patience
        if isinstance(error, httpx.Response):
            if late or not again:
                raise ServerError.of(error)
            return min(float(error.headers.get("retry-after", PAUSE)), self._patience)
        if late:
            url = self._options["base_url"]
            raise ServerError(
                f"{url} does not answer ({error or type(error).__name__}); check the address"
            ) from error
        return PAUSE


class Client(_Base):
    """Talks to a server. Use it in a `with` block, or `close` it.

    >>> with Client("http://127.0.0.1:8000") as client:
    ...     result = client.edit(request)
    """

    def __init__(self, url: str, *, key: str | None = None, patience: float = 60.0) -> None:
        super().__init__(url, key=key, patience=patience)
        self._http = httpx.Client(**self._options)

    def edit(
        self, request: EditRequest, *, progress: Progress | None = None, delete: bool = True, **options: Any
    ) -> EditResult:
        """The edit, once it is made. progress(done, total): in steps. delete: the server then forgets it.

        options: model, priority, deadline, on_disconnect. Raises `ServerError` with the server's line.
        """
        return self._talk(_edit(request, progress, delete, options))

    def submit(self, request: EditRequest, *, key: str | None = None, **options: Any) -> str:
        """The id of an edit that was accepted, for `result`. key: the same key and request make no second edit."""
        return self._talk(_submit(request, key, options))

    def result(self, id: str, request: EditRequest, *, progress: Progress | None = None) -> EditResult:
        """What came of an edit, once it has ended. request: what was submitted."""
        return self._talk(_result(id, request, progress))

    def status(self, id: str) -> dict[str, Any]:
        """How an edit stands: see GET /v1/edits/{id}."""
        return self._talk(_json(_get(f"/v1/edits/{id}")))

    def delete(self, id: str) -> None:
        """Stop an edit, and let the server forget it."""
        self._talk(_json(_Call("DELETE", f"/v1/edits/{id}", {})))

    def models(self) -> list[dict[str, Any]]:
        """What the server runs."""
        return list(self._talk(_json(_get("/v1/models")))["data"])

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _talk(self, talk: Talk[Kind]) -> Kind:
        try:
            call = next(talk)
            while True:
                call = talk.send(self._answer(call))
        except StopIteration as end:
            return end.value

    def _answer(self, call: _Call) -> httpx.Response:
        since = time.monotonic()
        while True:
            try:
                response = self._http.send(call.ask(self._http), stream=call.listen is not None)
                try:
                    if response.is_success:
                        for line in response.iter_lines() if call.listen else ():
                            call.listen(line)  # type: ignore[misc]
                        return response
                    response.read()
                finally:
                    response.close()
                seconds = self._wait(response, since)
            except httpx.TransportError as error:
                seconds = self._wait(error, since)
            time.sleep(seconds)


class AsyncClient(_Base):
    """`Client` for asyncio: each function is awaited. Use it in an `async with` block, or await `close`."""

    def __init__(self, url: str, *, key: str | None = None, patience: float = 60.0) -> None:
        super().__init__(url, key=key, patience=patience)
        self._http = httpx.AsyncClient(**self._options)

    async def edit(
        self, request: EditRequest, *, progress: Progress | None = None, delete: bool = True, **options: Any
    ) -> EditResult:
        """See `Client.edit`."""
        return await self._talk(_edit(request, progress, delete, options))

    async def submit(self, request: EditRequest, *, key: str | None = None, **options: Any) -> str:
        """See `Client.submit`."""
        return await self._talk(_submit(request, key, options))

    async def result(self, id: str, request: EditRequest, *, progress: Progress | None = None) -> EditResult:
        """See `Client.result`."""
        return await self._talk(_result(id, request, progress))

    async def status(self, id: str) -> dict[str, Any]:
        """See `Client.status`."""
        return await self._talk(_json(_get(f"/v1/edits/{id}")))

    async def delete(self, id: str) -> None:
        """See `Client.delete`."""
        await self._talk(_json(_Call("DELETE", f"/v1/edits/{id}", {})))

    async def models(self) -> list[dict[str, Any]]:
        """See `Client.models`."""
        return list((await self._talk(_json(_get("/v1/models"))))["data"])

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _talk(self, talk: Talk[Kind]) -> Kind:
        try:
            call = next(talk)
            while True:
                call = talk.send(await self._answer(call))
        except StopIteration as end:
            return end.value

    async def _answer(self, call: _Call) -> httpx.Response:
        since = time.monotonic()
        while True:
            try:
                response = await self._http.send(call.ask(self._http), stream=call.listen is not None)
                try:
                    if response.is_success:
                        if call.listen is not None:
                            async for line in response.aiter_lines():
                                call.listen(line)
                        return response
                    await response.aread()
                finally:
                    await response.aclose()
                seconds = self._wait(response, since)
            except httpx.TransportError as error:
                seconds = self._wait(error, since)
            await asyncio.sleep(seconds)
