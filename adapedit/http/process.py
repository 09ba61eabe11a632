"""The process: a socket, uvicorn in it, and signals: SIGTERM drains, a second one ends, SIGHUP loads models."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from adapedit.http.jobs import Jobs
from adapedit.http.service import make_app
from adapedit.http.settings import Settings
from adapedit.http.telemetry import log_lines
from adapedit_kernels.errors import AdapEditError

log = logging.getLogger(__name__)
LAST_ANSWERS = 5
"""Seconds that answers may take once everything has ended."""
MAX_CONNECTIONS = 1000
SWITCH = 0.0005
"""Seconds for which a thread keeps the interpreter from one that wants it. By Python's own 5 ms a model's thread, which
gives it up at every operation, would wait that long each time for whoever checks a request or writes a result."""


def run(
    settings: Settings, read: Callable[[], Settings], *, make_jobs: Callable[[Settings], Jobs] = Jobs
) -> None:
    """Serve until a signal. read: the settings anew, for SIGHUP. Raises `AdapEditError` for what can't be served."""
    log_lines()
    sock = listen(settings.host, settings.port)
    try:
        jobs = make_jobs(settings)
        server = Server(settings, jobs, read)
        server.run(sockets=[sock])
    finally:
        sock.close()
    if server.problem is not None:
        raise AdapEditError(server.problem)


class Server(uvicorn.Server):
    """uvicorn's, which drains before it ends. problem: why it ended by itself."""

    def __init__(self, settings: Settings, jobs: Jobs, read: Callable[[], Settings]) -> None:
        config = uvicorn.Config(
            make_app(settings, jobs),
            http=_protocol(settings.body_timeout / 3),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=LAST_ANSWERS,
        )
        super().__init__(config)
        self.jobs, self._read, self._drain = jobs, read, settings.drain
        self.problem: str | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        sys.setswitchinterval(SWITCH)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGHUP, self._reload)
        assert sockets is not None
        host, port = sockets[0].getsockname()[:2]
        log.info("listening on %s", host, extra={"port": port})
        threading.Thread(target=self._wait, name="adapedit-ready", daemon=True).start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGTERM or self.jobs.draining:
            self.should_exit = True
            return
        threading.Thread(target=self._drained, name="adapedit-drain", daemon=True).start()

    def _drained(self) -> None:
        log.info("draining")
        self.jobs.drain(self._drain)
        self.should_exit = True

    def _reload(self, *_: Any) -> None:
        threading.Thread(target=self._reloaded, name="adapedit-reload", daemon=True).start()

    def _reloaded(self) -> None:
        try:
            self.jobs.reload(self._read().models)
        except AdapEditError:
            log.error("the settings can't be read: nothing was loaded")

    def _wait(self) -> None:
        """Say when all is ready; end where a model can't be loaded at the start."""
        for lane in list(self.jobs.lanes.values()):
            if not lane.loaded():
                self.problem = f"model {lane.name}: {lane.state}"
                self.should_exit = True
                return
        log.info("ready")


def listen(host: str, port: int) -> socket.socket:
    """A socket there. Raises `AdapEditError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise AdapEditError(
            f"can't listen on {host} port {port} ({error.strerror or error}); choose others by --host and --port"
        ) from error
    return sock


def _protocol(seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 that closes a connection whose headers take longer."""

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._patience = self.loop.call_later(seconds, self._late)

        def connection_lost(self, exc: Exception | None) -> None:
            self._patience.cancel()
            super().connection_lost(exc)

        def _late(self) -> None:
            # uvloop runs timers before it reads: what came while the loop was held up is to be read first.
            self._patience = self.loop.call_later(0.05, self._leave)

        def _leave(self) -> None:
            if self.cycle is None:
                self.transport.close()

    return Protocol
