"""The service as an ASGI application: its parts, its life, and what all routes share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic.json_schema import models_json_schema

from adapedit import __version__
from adapedit.http.errors import answer_errors
from adapedit.http.events import Event, Mailbox, listen
from adapedit.http.jobs import Jobs
from adapedit.http.limits import Border, Keys, Rates, caller_of
from adapedit.http.schema import ENDED, AlignmentBody, EditBody, Failure, ImageBody, limit_document
from adapedit.http.settings import Settings
from adapedit.http.store import Row

Found = TypeVar("Found")
ACCEPTING = 4
"""Requests that are checked at the same time: each may decode a picture."""
STATUSES = (400, 401, 404, 408, 409, 413, 415, 422, 429, 503)
"""Of errors, of which the document says that any route may give them."""


class Service:
    """What routes work with. Its functions for them: `run`, `follow`, and `take` for rates."""

    def __init__(self, settings: Settings, jobs: Jobs) -> None:
        self.settings, self.jobs = settings, jobs
        self.keys, self.rates = Keys(settings.keys), Rates(settings.rate, settings.burst)
        self._room = anyio.CapacityLimiter(ACCEPTING)

    async def run(self, call: Callable[..., Found], *args: Any) -> Found:
        """Of what blocks, in a thread."""
        return await anyio.to_thread.run_sync(lambda: call(*args), limiter=self._room)

    def take(self, request: Request, owner: str, count: int = 1) -> None:
        """Count edits of a caller. Raises 429."""
        self.rates.take(caller_of(request, owner), count)

    async def follow(self, request: Request, row: Row) -> AsyncIterator[Event | None]:
        """What happens to an edit up to its end, or until the request's sender is gone; None where nothing does.

        An edit with on_disconnect "cancel" ends when its last listener goes away.
        """
        jobs, box, ended = self.jobs, Mailbox(), False
        await self.run(jobs.watch, row, box)
        try:
            async for event in listen(box, request.is_disconnected):
                ended = event is not None and event[0] in ENDED
                yield event
        finally:
            alone = jobs.unwatch(row.id, box)
            if alone and not ended and row.on_disconnect == "cancel" and not jobs.draining:
                asyncio.get_running_loop().run_in_executor(None, jobs.cancel, row.id)


_bearer = HTTPBearer(auto_error=False, description="An API key, where the server wants one.")


def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


async def _owner(
    request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> str:
    return _service(request).keys.owner(request.headers.get("authorization"))


Owner = Annotated[str, Depends(_owner)]
"""Whose key came with a request; "" where none is wanted."""
Parts = Annotated[Service, Depends(_service)]


def make_app(settings: Settings, jobs: Jobs) -> FastAPI:
    """The application. Its lifespan starts and closes the jobs."""
    from adapedit.http import edits, openai, operations

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(jobs.start)
        yield
        await anyio.to_thread.run_sync(jobs.close)

    app = FastAPI(
        title="AdapEdit",
        version=__version__,
        description="Edits pictures from two prompts. Errors are OpenAI's object.",
        lifespan=life,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        telemetry=jobs.traces.of_requests,  # type: ignore[arg-type]
        responses={status: {"model": Failure} for status in STATUSES},
    )
    app.state.service = Service(settings, jobs)
    for part in (edits, openai, operations):
        app.include_router(part.router)
    answer_errors(app)
    app.add_middleware(Border, settings=settings, metrics=jobs.metrics)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, with the bodies that routes read by hand."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        kinds: list[Any] = [(kind, "validation") for kind in (EditBody, ImageBody, AlignmentBody)]
        _, bodies = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
        limit_document(bodies["$defs"], app.state.service.settings)
        made["components"]["schemas"] |= bodies["$defs"]
        app.openapi_schema = made
    return app.openapi_schema
