"""Who may ask, and for how much: keys, rates, and bounds that hold before anything is parsed or decoded."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapedit.http.errors import ApiError, where
from adapedit.http.settings import Settings, is_loopback
from adapedit.http.telemetry import Metrics
from adapedit.request import EditRequest
from adapedit_kernels.errors import AdapEditError

NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
OPEN = ("/health", "/health/ready")
"""Paths for which no key is wanted: probes have none."""
MAX_CALLERS = 10_000
LINGER = 1.0
MAX_INNER = 10
"""Steps of an optimisation for each step that an edit may have."""


class Keys:
    """API keys by name, from a file with a line each: NAME and the SHA-256 of the key in hexadecimal.

    A key is 256 random bits, so that its plain hash gives nothing away. All hashes are compared at each request, in
    constant time.
    """

    def __init__(self, file: Path | None) -> None:
        self._hashes: dict[str, bytes] = {}
        if file is None:
            return
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise AdapEditError(f"keys {file} can't be read ({error}); check the path") from error
        mend = "make one by: adapedit serve --make-key NAME"
        for number, text in enumerate(lines, start=1):
            if not (line := text.partition("#")[0].strip()):
                continue
            found = re.fullmatch(rf"({NAME})\s+([0-9a-f]{{64}})", line)
            if found is None or found[1] in self._hashes:
                wanted = "wanted a name, which no other line has, and the key's SHA-256"
                raise AdapEditError(f"keys {file}, line {number}: {wanted}; {mend}")
            self._hashes[found[1]] = bytes.fromhex(found[2])
        if not self._hashes:
            raise AdapEditError(f"keys {file} has no key; {mend}")

    @classmethod
    def make(cls, name: str) -> tuple[str, str]:
        """A fresh key, and its line for the file."""
        if not re.fullmatch(NAME, name):
            raise AdapEditError(f"{name!r} is no name of a key; use letters, digits, '.', '_' and '-'")
        key = f"adapedit-{secrets.token_urlsafe(32)}"
        return key, f"{name} {hashlib.sha256(key.encode()).hexdigest()}"

    def owner(self, authorization: str | None) -> str:
        """Whose key it is; "" where none is wanted. Raises 401."""
        if not self._hashes:
            return ""
        kind, _, key = (authorization or "").partition(" ")
        given, found = hashlib.sha256(key.strip().encode(errors="replace")).digest(), None
        for name, digest in self._hashes.items():
            if hmac.compare_digest(digest, given):
                found = name
        if found is None or kind.lower() != "bearer":
            what = "there is no such key" if authorization else "no key was given"
            message = f"{what}; send the header Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return found


class Rates:
    """A bucket for each caller, which fills at `rate` a minute up to `burst`."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate / 60, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, count: int = 1, now: float | None = None) -> None:
        """Take `count` edits. Raises 429 with the time after which there are as many. From the event loop only."""
        now = time.monotonic() if now is None else now
        held, at = self._buckets.pop(caller, (float(self._burst), now))
        held = min(self._burst, held + (now - at) * self._rate)
        enough = held >= min(count, self._burst)
        self._buckets[caller] = (held - count if enough else held, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        if not enough:
            message = f"more than {self._rate * 60:g} edits a minute were asked for; wait a little"
            wait = (min(count, self._burst) - held) / self._rate
            raise ApiError.later(429, message, wait, code="rate_limit_exceeded")


def caller_of(request: Request, owner: str) -> str:
    """Whom a rate holds for: the key, or without keys the address."""
    return owner or (request.client.host if request.client else "")


def check(request: EditRequest, settings: Settings, side: int) -> None:
    """Raise for a request that asks for more than is allowed. side: of the model's own pictures, pixels."""
    for name, text in _texts(request.model_dump(mode="json", exclude_unset=True)):
        if len(text) > settings.max_text:
            message = (
                f"{name} has {len(text)} characters, at most {settings.max_text} are taken; say it shorter"
            )
            raise ApiError(422, message, code="too_long", param=name)
    steps, most = request.num_inference_steps, settings.max_steps
    if steps > most:
        message = f"num_inference_steps is {steps}, at most {most} are run here"
        raise ApiError(422, message, code="too_many_steps", param="num_inference_steps")
    inner, most = steps * getattr(request.inversion, "inner_steps", 1), MAX_INNER * most
    if inner > most:
        message = (
            f"inversion takes {inner} steps of optimisation, at most {most} are run here; lower inner_steps"
        )
        raise ApiError(422, message, code="too_many_steps", param="inversion")
    width, height = request.width or side, request.height or side
    if width * height > settings.max_pixels and (request.width or request.height):
        message = (
            f"{width} x {height} are {width * height} pixels, at most {settings.max_pixels} are made here"
        )
        raise ApiError(422, message, code="too_large", param="height")


def confine(request: EditRequest) -> EditRequest:
    """The same, leaving nothing outside of the service's own folder: no inversion goes into the user's cache."""
    inversion = request.inversion
    if inversion is None or "cache" not in type(inversion).model_fields:
        return request
    return request.model_copy(update={"inversion": inversion.model_copy(update={"cache": "off"})})


def check_picture(name: str, content: bytes, settings: Settings) -> None:
    """Raise for a picture of too many pixels, by its header alone, and for what is none."""
    from adapedit.images import picture_size

    width, height = picture_size(content, name)
    if width * height > settings.max_picture_pixels:
        message = f"{name} has {width} x {height} pixels, at most {settings.max_picture_pixels} are taken"
        raise ApiError(413, f"{message}; send a smaller one", code="picture_too_large", param=name)


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value, keys, too, with the field that it is in."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield name or key, key
            yield from _texts(one, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, name)
    elif isinstance(value, str):
        yield name, value


async def _discard(receive: Receive) -> None:
    """Read on for a moment: whoever still sends would not see an answer."""

    async def discard() -> None:
        while (await receive()).get("more_body", False):
            pass

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(discard(), LINGER)


class Border:
    """The outermost layer: bodies are bounded in bytes and in time, and no error gets past it.

    A body that says it is too long is refused before a byte of it is read.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                if message["status"] >= 400:
                    self.metrics.refused.labels(str(message["status"])).inc()
            await send(message)

        try:
            self._refuse_long(scope)
            self._refuse_pages(scope)
            await self.app(scope, self._bounded(receive), sending)
        except Exception as error:
            found = ApiError.of(error)
            if found.status == 500:
                logging.getLogger(__name__).error("a request failed", extra={"reason": where(error)})
                found = ApiError(500, "the server failed at this request; its log tells more")
            if not begun:
                if found.status == 413:
                    await _discard(receive)
                await found.response()(scope, receive, sending)

    def _refuse_long(self, scope: Scope) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.settings.max_body:
            raise self._too_long()

    def _refuse_pages(self, scope: Scope) -> None:
        """A page of somebody else, open in a browser of this machine, may send to it what it likes."""
        if self.settings.keys is not None or self.settings.insecure:
            return
        headers = Headers(scope=scope)
        for name, url in (
            ("Host", f"http://{headers.get('host', 'localhost')}"),
            ("Origin", headers.get("origin")),
        ):
            try:
                strange = url is not None and not is_loopback(urlsplit(url).hostname or "")
            except ValueError:
                strange = True
            if strange:
                message = (
                    f"{name} is not this machine, and there are no keys; call 127.0.0.1, or give it keys"
                )
                raise ApiError(403, message, param=name)

    def _too_long(self) -> ApiError:
        limit = f"at most {self.settings.max_body} bytes are taken"
        return ApiError(
            413, f"the body is too long: {limit}", code="body_too_large", headers={"Connection": "close"}
        )

    def _bounded(self, receive: Receive) -> Receive:
        """receive, up to the end of the body within its bounds."""
        came, ended, until = 0, False, time.monotonic() + self.settings.body_timeout

        async def bounded() -> Message:
            nonlocal came, ended
            if ended:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except asyncio.TimeoutError as error:
                text = f"the body took more than {self.settings.body_timeout:g} s; send it faster, or a smaller one"
                raise ApiError(408, text, headers={"Connection": "close"}) from error
            came += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if came > self.settings.max_body:
                raise self._too_long()
            return message

        return bounded
