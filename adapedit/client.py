"""Edits on a server of `adapedit serve`, by the request and result types of Python: `AsyncClient`, and `Client`."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar

from adapedit.http import require
from adapedit.request import EditRequest, check_callback, check_request
from adapedit.result import EditResult
from adapedit_kernels.errors import AdapEditError

require("serve", "httpx")

import httpx  # noqa: E402
from anyio.from_thread import start_blocking_portal  # noqa: E402

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


class AsyncClient:
    """Talks to a server, by asyncio. Use it in an `async with` block, or await `close`.

    url: of the server. key: an API key; None: that of ADAPEDIT_KEY. patience: seconds in which a call is tried again
    that could not be made, or was answered with 429 or 503.
    """

    def __init__(self, url: str, *, key: str | None = None, patience: float = 60.0) -> None:
        key = os.environ.get(KEY) if key is None else key
        self._url, self._patience = url, patience
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            if httpx.URL(url).scheme not in ("http", "https"):
                raise ValueError("wanted http:// or https://")
            self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=60.0)
        except (ValueError, TypeError, httpx.InvalidURL) as error:
            raise ServerError(f"the server is {url!r} ({error}); give it as http://HOST:PORT") from error

    async def edit(
        self, request: EditRequest, *, progress: Progress | None = None, delete: bool = True, **options: Any
    ) -> EditResult:
        """The edit, once it is made. progress(done, total): in steps. delete: the server then forgets it.

        options: model, priority, deadline, on_disconnect. Raises `ServerError` with the server's line.
        """
        id = await self.submit(request, **options)
        result = await self.result(id, request, progress=progress)
        if delete:
            await self.delete(id)
        return result

    async def submit(self, request: EditRequest, *, key: str | None = None, **options: Any) -> str:
        """The id of an edit that was accepted, for `result`. key: the same key and request make no second edit."""
        check_request(request)
        fields, files = request.to_wire()
        fields |= {name: value for name, value in options.items() if value is not None}
        # A key of our own, so that the call can be made again when nobody knows whether it came.
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        more: dict[str, Any] = {"json": fields}
        if files:
            more = {"data": {"request": json.dumps(fields, allow_nan=False)}, "files": files}
        answer = await self._call("POST", "/v1/edits", headers=headers, **more)
        return str(answer.json()["id"])

    async def result(self, id: str, request: EditRequest, *, progress: Progress | None = None) -> EditResult:
        """What came of an edit, once it has ended. request: what was submitted."""
        from adapedit.http import archive

        check_callback(progress)

        def told(line: str) -> None:
            if progress is not None and line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                if data.get("steps"):
                    progress(data["step"], data["steps"])

        while (await self.status(id))["status"] in ("queued", "in_progress"):
            await self._call("GET", f"/v1/edits/{id}/events", told)
        variants = {archive.ARRAYS: "arrays", archive.EDIT: "edit"}
        variants |= {f"{name}.png": name for name in archive.PICTURES}
        path = f"/v1/edits/{id}/content"
        files = {
            name: (await self._call("GET", path, params={"variant": variant})).content
            for name, variant in variants.items()
        }
        return archive.read(files.__getitem__, request)

    async def status(self, id: str) -> dict[str, Any]:
        """How an edit stands: see GET /v1/edits/{id}."""
        return dict((await self._call("GET", f"/v1/edits/{id}")).json())

    async def delete(self, id: str) -> None:
        """Stop an edit, and let the server forget it."""
        await self._call("DELETE", f"/v1/edits/{id}")

    async def models(self) -> list[dict[str, Any]]:
        """What the server runs."""
        return list((await self._call("GET", "/v1/models")).json()["data"])

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self, verb: str, path: str, listen: Callable[[str], None] | None = None, **more: Any
    ) -> httpx.Response:
        """An answer that is a success, tried again as long as that may help. listen: takes the lines of a stream."""
        since = time.monotonic()
        while True:
            try:
                async with self._http.stream(verb, path, **more) as response:
                    if listen is not None and response.is_success:
                        async for line in response.aiter_lines():
                            listen(line)
                            since = time.monotonic()
                    else:
                        await response.aread()
                if response.is_success:
                    return response
                error, again = ServerError.of(response), response.status_code in AGAIN
                wanted = response.headers.get("retry-after", "")
            except httpx.TransportError as failure:
                reason = failure or type(failure).__name__
                error = ServerError(f"{self._url} does not answer ({reason}); check the address")
                again, wanted = True, ""
            if not again or time.monotonic() - since > self._patience:
                raise error
            await asyncio.sleep(min(float(wanted) if wanted.isdigit() else PAUSE, self._patience))


class Client:
    """`AsyncClient` without asyncio: each function waits. Use it in a `with` block, or `close` it.

    >>> with Client("http://127.0.0.1:8000") as client:
    ...     result = client.edit(request)
    """

    def __init__(self, url: str, *, key: str | None = None, patience: float = 60.0) -> None:
        self._client, self._stack = AsyncClient(url, key=key, patience=patience), ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal())

    def _run(self, call: Callable[..., Coroutine[Any, Any, Kind]], *args: Any, **options: Any) -> Kind:
        return self._portal.call(lambda: call(*args, **options))

    def edit(
        self, request: EditRequest, *, progress: Progress | None = None, delete: bool = True, **options: Any
    ) -> EditResult:
        """See `AsyncClient.edit`. progress is called in another thread."""
        return self._run(self._client.edit, request, progress=progress, delete=delete, **options)

    def submit(self, request: EditRequest, *, key: str | None = None, **options: Any) -> str:
        """See `AsyncClient.submit`."""
        return self._run(self._client.submit, request, key=key, **options)

    def result(self, id: str, request: EditRequest, *, progress: Progress | None = None) -> EditResult:
        """See `AsyncClient.result`. progress is called in another thread."""
        return self._run(self._client.result, id, request, progress=progress)

    def status(self, id: str) -> dict[str, Any]:
        """See `AsyncClient.status`."""
        return self._run(self._client.status, id)

    def delete(self, id: str) -> None:
        """See `AsyncClient.delete`."""
        self._run(self._client.delete, id)

    def models(self) -> list[dict[str, Any]]:
        """See `AsyncClient.models`."""
        return self._run(self._client.models)

    def close(self) -> None:
        self.__exit__(None, None, None)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._run(self._client.close)
        finally:
            self._stack.__exit__(*error)
