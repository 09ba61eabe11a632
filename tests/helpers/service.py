"""The HTTP service on a free port of this machine, in a thread, with a tiny model; and what tests say to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from adapedit.http.jobs import Jobs
from adapedit.http.lane import Load, load_source
from adapedit.http.process import Server, listen
from adapedit.http.settings import ModelSource, Settings

FIELDS = {"source_prompt": "a red dog", "target_prompt": "a blue dog", "num_inference_steps": 2}


def settings_for(folder: Path, data: Path, **more: Any) -> Settings:
    models = [ModelSource(name="tiny", source=str(folder), device="cpu")]
    return Settings.read(None, {"data": data, "models": models, "port": 0, **more})


class Running:
    """A service that runs. client: httpx's."""

    def __init__(self, server: Server, url: str) -> None:
        self.server, self.jobs, self.url = server, server.jobs, url
        self.client = httpx.Client(base_url=url, timeout=120)

    def edit(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/edits", json={**FIELDS, **fields}, headers=headers)

    def ended(self, id: str, seconds: float = 120) -> dict[str, Any]:
        """The edit, once it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.client.get(f"/v1/edits/{id}").json()
            if found["status"] not in ("queued", "in_progress"):
                return found
            time.sleep(0.01)
        raise AssertionError(f"not ended: {found}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """No model takes a step inside: what is sent is accepted, and none of it ends, however fast the machine is.

        Half as many edits as `max_rows` are under way then, see `full`; the rest waits.
        """
        gate = threading.Event()
        runners = [lane.model.runner for lane in self.jobs.lanes.values() if lane.model is not None]

        def waiting(infer: Callable[..., Any]) -> Callable[..., Any]:
            def step(*args: Any, **more: Any) -> Any:
                assert gate.wait(120)
                return infer(*args, **more)

            return step

        for runner in runners:
            runner.infer = waiting(runner.infer)  # type: ignore[method-assign]
        try:
            yield
        finally:
            gate.set()
            for runner in runners:
                del runner.infer

    def full(self, seconds: float = 60) -> None:
        """Wait until the first model has taken all that it takes at once, while it is held."""
        until = time.monotonic() + seconds
        while next(iter(self.jobs.lanes.values())).counts[0] < self.jobs.settings.max_rows // 2:
            assert time.monotonic() < until
            time.sleep(0.005)

    def done(self, **fields: Any) -> dict[str, Any]:
        """An edit that was made."""
        response = self.edit(**fields)
        assert response.status_code == 202, response.text
        found = self.ended(response.json()["id"])
        assert found["status"] == "completed", found
        return found


@contextmanager
def serving(settings: Settings, load: Load = load_source, *, ready: bool = True) -> Iterator[Running]:
    """ready: wait until the models are."""
    sock = listen(settings.host, settings.port)
    server = Server(settings, Jobs(settings, load), lambda: settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    running = Running(server, f"http://127.0.0.1:{sock.getsockname()[1]}")
    try:
        if ready:
            assert all(lane.loaded() for lane in server.jobs.lanes.values()), server.problem
        yield running
    finally:
        running.client.close()
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
